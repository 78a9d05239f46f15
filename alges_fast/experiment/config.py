"""The configuration of an experiment, and its presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from alges_fast import windows
from alges_fast.data import DATASETS
from alges_fast.errors import UserError
from alges_fast.models import FROZEN, TUNED
from alges_fast.settings import setting
from alges_fast.strategies import strategy_names
from alges_fast.training.config import TrainConfig


@dataclass(frozen=True)
class RunConfig(TrainConfig):
    """What to run. Every field is a flag of the same name and a key of a YAML file given by --config.

    Args:
        preset: defaults for all others; flags and --config override them. demo (minutes on two cores), camvid (a
            grid for CamVid that two cores finish), paper (the protocol of ALGES, exactly), none (those listed here).
            Left out it is demo; or none where --dataset, --architecture, --encoder, --encoder_weights, --head_kernel,
            --steps, --epochs, --batch_size, --lr, --augment, --teacher or --self_training is given. --print_config
            shows what comes of it.
        dataset: drawn surgical video, or how the files lie. synthetic-full is at CholecSeg8k's size; folder is
            {train,val,test}/{images,masks} with the same file stems in both.
        data_root: where its files are.
        split: which videos go to which split, where a data set has several ways, as cholecseg8k has alges (the
            paper's, reconstructed) and endovit.
        ignore_index: mask value that is not labelled, for folder; such pixels count in no loss and no metric.
        on_bad_image: stop at a file that cannot be used, or skip the frame and list it.
        strategies: how to choose, or your own: path/to/file.py:Class. full is the whole pool, trained once.
        regions: whole frames, windows of frames, or both. With 8x8, rows x columns, every query chooses windows, worth
            as many pixels; with none whole frames. Every strategy runs with each of them; to give one strategy its own,
            write it behind its name: none,8x8 or alges-effort@8x8.
        seeds: repetitions; a seed fixes the initial pool, weights, shuffling and picks.
        rounds: trainings for each strategy and seed; training r has init_size + r x query_size labelled images.
        init_size: images labelled at the start; drawn at random from the seed alone.
        query_size: images chosen after each training but the last; with windows, as many images' pixels.
        random_rounds: trainings of random, frames and windows, where they should be more than rounds: what a strategy
            saves is read off these curves, and cannot be larger than they are long.
        random_query_size: images that random, frames and windows, draws after each training, a multiple of query_size:
            it learns nothing from a training, so larger steps give the same curve with fewer of them.
        frames_at_most: of how many frames a query's windows may be; by default of any.
        consider: of how many frames a query hears, at most, drawn anew for each; by default of all.
        device: auto, cpu or cuda.
        precision: 32-true, bf16-mixed or 16-mixed.
        out: folder for results, one for each configuration; the same command again continues what is in it.
        keep_models: keep every round's model.safetensors instead of removing it when the round is finished.
    """

    preset: str = setting("none", "NAME", first=True, among=lambda: PRESETS)
    dataset: str = setting("synthetic", "NAME", first=True, among=lambda: DATASETS)
    data_root: str | None = setting(None, "DIR", first=True)
    split: str | None = None
    ignore_index: int | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    strategies: tuple[str, ...] = setting(
        ("random", "alges-img", "alges-sem"), "A,B,..", first=True, among=strategy_names
    )
    regions: tuple[str, ...] = setting(("none",), "none,4x4", first=True)
    seeds: tuple[int, ...] = setting((0,), "0,1,2", first=True)
    rounds: int = setting(4, first=True)
    init_size: int = setting(10, first=True)
    query_size: int = setting(10, first=True)
    random_rounds: int | None = None
    random_query_size: int | None = None
    frames_at_most: int | None = None
    consider: int | None = None
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "NAME", first=True)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    out: str = setting("alges_fast_run", "DIR", first=True)
    keep_models: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "init_size", "query_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give at least 1")
        if not self.out:
            raise UserError("--out is empty: give a folder")
        if self.frames_at_most is not None and self.frames_at_most < 1:
            raise UserError(f"--frames_at_most is {self.frames_at_most}: give at least 1")
        if self.consider is not None and self.consider < (most := max(self.query_size, self.random_query_size or 0)):
            raise UserError(f"--consider is {self.consider}: give at least what a query chooses, {most} frames")
        if self.random_query_size is not None and (
            self.random_query_size < 1 or self.random_query_size % self.query_size
        ):
            raise UserError(
                f"--random_query_size is {self.random_query_size}: give a multiple of --query_size, {self.query_size}"
            )
        if self.random_rounds is not None:
            per_step = (self.random_query_size or self.query_size) // self.query_size
            if (self.random_rounds - 1) * per_step < self.rounds - 1:
                least = math.ceil((self.rounds - 1) / per_step) + 1
                raise UserError(
                    f"--random_rounds is {self.random_rounds}: give at least {least}, with which random draws label as "
                    f"many as --rounds {self.rounds} does"
                )
        for grid in self.regions:
            regions_of(grid)
        for name in ("strategies", "regions", "seeds"):
            values = getattr(self, name)
            if not values:
                raise UserError(f"--{name} is empty: give at least one")
            if len(set(values)) < len(values):
                raise UserError(f"--{name} names one twice: {','.join(map(str, values))}")
        if min(self.seeds) < 0:
            raise UserError(f"--seeds has {min(self.seeds)}: give numbers from 0 on")


def regions_of(text: str) -> tuple[int, int] | None:
    """Rows and columns of windows as `--regions` names them, None for whole frames. Raises UserError: it names none."""
    if text == "none":
        return None
    try:
        return windows.parse_regions(text)
    except ValueError as error:
        raise UserError(f"--regions {error}, or none for whole frames") from error


def preset_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset sets, which is "preset" itself among the rest, where the user has given these settings.

    The demo is one experiment, data and network: it is the preset where none is named, unless the user brings one of
    the two. What belongs to a setting that the user replaces is left out.

    Raises:
        UserError: there is no such preset.
    """
    preset = given.get("preset", "none" if NOT_THE_DEMO & given.keys() else "demo")
    if preset not in PRESETS:
        raise UserError(f"--preset {preset} is unknown: use {', '.join(PRESETS)}")
    values = {"preset": preset, **PRESETS[preset]}
    if given.get("architecture") in (FROZEN, TUNED):
        values.pop("encoder", None)  # of another architecture; this one has its own
    if "steps" in given:
        values.pop("epochs", None)
    if "rounds" in given:
        values.pop("random_rounds", None)  # more than the preset's own rounds
    if "regions" in given and "strategies" in values:
        values["strategies"] = tuple(dict.fromkeys(name.partition("@")[0] for name in values["strategies"]))
    return values


NOT_THE_DEMO = frozenset(
    {
        *("dataset", "architecture", "encoder", "encoder_weights", "head_kernel"),
        *("steps", "epochs", "batch_size", "lr", "augment", "teacher", "self_training"),
    }
)
"""Settings whose user has an experiment of their own in mind: its data, its network, or how a whole one is trained."""

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "none": {},
        "demo": {
            "dataset": "synthetic",
            "image_size": 96,
            "strategies": ("random@none", "random@16x16", "alges-effort@16x16"),
            "seeds": tuple(range(8)),
            "rounds": 4,
            "random_rounds": 12,
            "init_size": 2,
            "query_size": 2,
            "architecture": FROZEN,
            "head_steps": 200,
        },
        "camvid": {
            "dataset": "folder",
            "ignore_index": 11,
            "image_size": 64,
            "strategies": (
                "random",
                "stratified-random",
                "entropy",
                "margin",
                "least-confidence",
                "coreset",
                "deal",
                "alges-img",
                "alges-sem",
                "alges-sem-vector",
                "alges-img-released",
                "alges-sem-released",
                "full",
            ),
            "seeds": tuple(range(10)),
            "rounds": 4,
            "init_size": 4,
            "query_size": 6,
            "epochs": 100,
            "batch_size": 4,
            "encoder": "tu-mobilenetv4_conv_small_050",
            "out": "alges_fast_camvid",
        },
        # ALGES (Aklilu & Yeung 2022), its experiments. Fixed: from scratch each round, cross-entropy, Adam(0.9, 0.999).
        "paper": {
            "dataset": "cholecseg8k",
            "split": "alges",
            "image_size": 224,
            "strategies": (
                "random",
                "entropy",
                "margin",
                "least-confidence",
                "coreset",
                "deal",
                "alges-img",
                "alges-sem",
                "full",
            ),
            "seeds": (0, 1, 2),
            "rounds": 30,
            "init_size": 10,
            "query_size": 10,
            "epochs": 50,
            "batch_size": 32,
            "lr": 5e-5,
            "architecture": "unet",
            "encoder": "resnet18",
            "encoder_weights": None,
            "head_kernel": 1,
            "out": "alges_fast_paper",
        },
    }
)
"""Values that differ from RunConfig's own defaults; "paper" also states those that its protocol fixes."""
