"""What a round is asked for: the settings of `next`, and of `select`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from alges_fast.annotation.desk import Desk
from alges_fast.errors import UserError
from alges_fast.selection import Unit
from alges_fast.selection.defaults import default_strategy
from alges_fast.settings import setting
from alges_fast.windows import parse_regions

CONSIDERED = 40_000
"""Frames that a round hears of where nothing else is asked: 11 hours at one a second. In 16 x 16 windows so many are
what a minute of two cores and 4 GB are enough for (docs/scaling.md)."""

NOT_ASKED = frozenset({"on_bad_image", "device", "batch_size"})
"""Settings that may differ where a round is asked for again: nothing is chosen by them."""


@dataclass(frozen=True)
class NextSettings:
    """What to choose.

    Args:
        n: how many frames; with regions, how many whole frames the windows add up to.
        regions: windows of frames, rows x columns such as 8x8; without it whole frames.
        strategy: how to choose, or your own as path/to/file.py:Class; by default alges-img, with regions random,
            without a model typical.
        model: .pt2, .ts, .safetensors or package.module:function. A trained model of yours: model.pt2 (torch.export),
            model.ts or model.pt (TorchScript), package.module:function that returns one, or state.safetensors, the
            weights of --architecture. In a project it chooses and predicts in the place of the project's own.
        min_gap: frames of one video are picked at least this far apart, in seconds of a video file and in numbers of
            numbered pictures; by default 2 seconds, 50 numbers. Halved where too few are left; 0 allows any. Windows of
            one frame may be picked together.
        budget: pixels, or outline: as many frames, or windows, as cost together what n frames do on average, where each
            costs the outline that the model predicts in it and a quarter of its side.
        budget_pixels: with regions, how many pixels (of the frames' own size) to choose, in the place of n.
        frames_at_most: with regions, of how many frames windows may be picked, for who wants few frames whole in view.
        consider: of how many frames a round hears, at most, by default 40 000 where something looks at them. Drawn
            anew for every round, even over videos and over time in each, what is within min_gap of labelled ones last.
        thin: leave out frames that look like another of their video, within this of the typical distance between frames
            of different videos, such as 0.2; status says how many that are. What is labelled or asked for already
            stands for what is near it.
        labelled: what is annotated elsewhere, one a line. A text list of ids, paths of pictures, or windows as
            picks.csv names them. They are not picked, and strategies that cover the pool see them.
        class_weights: classes to aim at: a factor per class, comma separated, or JSON by name such as
            {"polyp": 10}, others 1. A class's part of every embedding is multiplied by it. ALGES strategies only.
        normalise: how pictures are given to a model of yours: auto (as its file says, where alges_fast saved it, else
            imagenet), imagenet (its mean and deviation), half (-1 to 1) or unit (0 to 1).
        architecture: network of a safetensors state that does not say what it is, by its name in
            segmentation-models-pytorch; files that alges_fast saved say it.
        encoder: its encoder, by default resnet18. Of `select` without a model the one that looks at the pool, by
            default the packaged EfficientNet-Lite0, which needs no network.
        encoder_weights: where the weights of its frozen encoder are, if elsewhere than the model's file says; of an
            encoder that looks at the pool packaged, a name such as imagenet, or a file.
        head_kernel: size of its last convolution.
        desk: what windows are annotated on: sheets of 24 to 36, crops (a picture each), or frames; auto is sheets for
            CVAT and crops for Label Studio.
        on_bad_image: skip a picture or video that cannot be used and list it in left_out.csv, or stop at it.
        device: where a model of yours runs.
        precision: of its forward pass.
        batch_size: frames in one.
    """

    n: int = setting(20, first=True)
    regions: str | None = setting(None, "RxC", first=True)
    strategy: str | None = setting(None, "NAME", first=True)
    model: str | None = setting(None, "MODEL", first=True)
    min_gap: float | None = None
    budget: Unit = "pixels"
    budget_pixels: int | None = None
    frames_at_most: int | None = None
    consider: int | None = None
    thin: float | None = None
    labelled: str | None = setting(None, "FILE", first=True)
    class_weights: str | None = None
    normalise: Literal["auto", "imagenet", "half", "unit"] = "auto"
    architecture: str = "unet"
    encoder: str | None = None
    encoder_weights: str | None = None
    head_kernel: int = 1
    desk: Desk = "auto"
    on_bad_image: Literal["skip", "stop"] = "skip"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("n", "budget_pixels", "frames_at_most", "consider", "batch_size", "head_kernel"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{'-' if name == 'n' else '--'}{name} is {getattr(self, name)}: give at least 1")
        if self.consider is not None and self.consider < self.n and self.budget_pixels is None:
            raise UserError(f"--consider is {self.consider}, fewer frames than -n {self.n} asks for: give more")
        if self.frames_at_most is not None and self.regions is None:
            raise UserError("--frames_at_most is of windows: give --regions too, such as --regions 16x16")
        if self.budget not in ("pixels", "outline"):
            raise UserError(f"--budget is {self.budget}: give pixels or outline")
        if self.desk not in get_args(Desk):
            raise UserError(f"--desk is {self.desk}: give {', '.join(get_args(Desk))}")
        if self.budget_pixels is not None and self.regions is None:
            raise UserError("--budget_pixels counts pixels of windows: give --regions too, such as --regions 8x8")
        if self.thin is not None and not 0 < self.thin < math.inf:
            raise UserError(f"--thin is {self.thin}: give a finite number above 0, such as 0.2")
        if self.min_gap is not None and not 0 <= self.min_gap < math.inf:
            raise UserError(f"--min_gap is {self.min_gap}: give a finite number, 0 or more")
        try:
            _ = self.grid
        except ValueError as error:
            raise UserError(f"--regions {error}") from error

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of `regions`."""
        return None if self.regions is None else parse_regions(self.regions)


def asked_for(settings: NextSettings, reject: Sequence[str]) -> dict[str, Any]:
    """A round's record of what it was asked for, as JSON has it: names and values, and `reject`."""
    values = {each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in NOT_ASKED}
    return {**values, "reject": list(reject)}


def whole(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A record of any age with the settings that it does not have."""
    return {**asked_for(NextSettings(), ()), **asked}


def strategy_of(asked: Mapping[str, Any], model: int | None) -> str:
    """The strategy of a round: what was asked for, or else one that suits whether a model chooses."""
    if asked["strategy"] is not None:
        return str(asked["strategy"])
    has_model = model is not None or asked["model"] is not None
    return default_strategy(model=has_model, windows=asked["regions"] is not None)


def as_flags(asked: Mapping[str, Any]) -> str:
    """How it is typed."""
    plain, flags = asked_for(NextSettings(), ()), [f"-n {asked.get('n', NextSettings.n)}"]
    for name, value in asked.items():
        if name not in ("n", "reject") and value != plain.get(name):
            flags.append(f"--{name} {value}")
    return " ".join(flags)
