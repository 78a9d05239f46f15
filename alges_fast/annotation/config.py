"""The settings of `python -m alges_fast.select`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from alges_fast.errors import UserError
from alges_fast.models.weights import frozen_encoder
from alges_fast.selection.defaults import default_strategy
from alges_fast.strategies import get_strategy, strategy_names
from alges_fast.windows import grid_of


@dataclass(frozen=True)
class SelectConfig:
    """What to choose from, and how. Every field is a flag of the same name and a key of a YAML file given by --config.

    Args:
        model: a trained model: model.pt2 (torch.export), model.ts or model.pt (TorchScript), package.module:function
            that returns one, or state.safetensors, the weights of --architecture with --encoder. Without one a frozen
            encoder looks at the pool, for strategies that need no model.
        images: the pool: a folder of pictures and videos (searched to its depths), a text list of paths, or one video.
        n: how many frames to choose; with regions, how many whole frames the windows may add up to.
        out: folder for what is chosen; the same command again continues what is in it.
        on_bad_image: stop at a picture or video that cannot be used, or skip it and list it in OUT/left_out.csv. What
            is skipped once stays out of this selection.
        strategy: random, stratified-random (over videos), entropy, margin, least-confidence, coreset, alges-img,
            alges-sem, alges-sem-vector, power-entropy, balanced-entropy, claspe, foreground-random, alges-img-balanced,
            alges-effort, alges-class, herding, uherding, typical, strided, bait, or your own as path/to/file.py:Class;
            by default alges-img, with regions alges-effort, without a model typical.
        seed: fixes every pick.
        regions: rows x columns, such as 8x8: every frame is cut into that grid, and windows of frames are chosen
            instead of whole frames.
        budget_pixels: with regions, how many pixels (of the frames' own size) to choose; by default those of n frames.
        budget: pixels, or outline: as many frames, or windows, as cost together what n frames do on average, where
            each costs the outline that the model predicts in it and a quarter of its side.
        labelled: text file of frames that are annotated already, one id or path a line; they are not picked, and what
            is like them is picked less. With regions also windows, as picks.csv names them.
        reject: text file of picked frames that were refused, one id a line; each is replaced, the other picks stay.
            Add to the file and run again as often as you like. With regions, windows or frames with all their windows.
        min_gap: frames of one video are picked at least this far apart, in seconds of a video file and in numbers of
            numbered pictures; by default 2 seconds, 50 numbers. Halved where too few are left; 0 allows any. Windows of
            one frame may be picked together.
        fps: frames taken from each second of a video.
        class_weights: classes to aim at: a factor per class, comma separated, or JSON by name such as
            {"polyp": 10}, others 1. A class's part of every embedding is multiplied by it. ALGES strategies only.
        classes: class names: a text file, one a line, or a comma-separated list; by default "class 0", "class 1", ...
        image_size: side of the square that frames are stretched to, in pixels: the size the model was trained at.
        normalise: how pictures are given to the model: auto (as its file says, where alges_fast saved it, else
            imagenet), imagenet (its mean and deviation), half (-1 to 1) or unit (0 to 1).
        architecture: network of a safetensors state that does not say what it is, by its name in
            segmentation-models-pytorch; files that alges_fast saved say it.
        encoder: its encoder, by default resnet18; without a model the encoder that looks at the pool, by default the
            packaged one (EfficientNet-Lite0, which needs no network).
        head_kernel: size of its last convolution.
        encoder_weights: where the weights of a frozen encoder are, if elsewhere than the model's file says; without a
            model those of the encoder, packaged, a name such as imagenet, or a file.
        image_prefix: what Label Studio serves the folder OUT/images under.
        device: auto, cpu or cuda.
        precision: 32-true, bf16-mixed or 16-mixed.
        batch_size: frames per forward pass.
    """

    images: str
    model: str | None = None
    n: int = 50
    out: str = "alges_fast_selection"
    on_bad_image: Literal["stop", "skip"] = "stop"
    strategy: str = ""
    seed: int = 0
    regions: str | None = None
    budget_pixels: int | None = None
    budget: Literal["pixels", "outline"] = "pixels"
    labelled: str | None = None
    reject: str | None = None
    min_gap: float | None = None
    fps: float = 1.0
    class_weights: str | None = None
    classes: str | None = None
    image_size: int = 224
    normalise: Literal["auto", "imagenet", "half", "unit"] = "auto"
    architecture: str = "unet"
    encoder: str = ""
    head_kernel: int = 1
    encoder_weights: str | None = None
    image_prefix: str = "/data/local-files/?d=images/"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    batch_size: int = 16

    def __post_init__(self) -> None:
        encoder, weights = self.encoder or "resnet18", self.encoder_weights
        if self.model is None:
            encoder, weights = frozen_encoder(self.encoder, weights)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "encoder_weights", weights)
        named = self.strategy or default_strategy(model=self.model is not None, windows=self.regions is not None)
        object.__setattr__(self, "strategy", named)
        strategy = get_strategy(self.strategy)
        if strategy.takes_whole_pool:
            raise UserError(f"--strategy {self.strategy} takes the whole pool, so there is nothing to choose")
        if strategy.needs_model and self.model is None:
            classes = {name: get_strategy(name) for name in strategy_names()}
            others = [name for name, of in classes.items() if not of.needs_model and not of.takes_whole_pool]
            raise UserError(
                f"--strategy {self.strategy} needs a trained model: give it with --model, or choose by one that needs "
                f"none: {', '.join(others)}"
            )
        if strategy.trains_own_model and ":" not in (self.model or ""):
            raise UserError(
                f"--strategy {self.strategy} needs a model that was trained for it: give it as package.module:function"
            )
        if not self.out:
            raise UserError("--out is empty: give a folder")
        for name, least in (("n", 1), ("seed", 0), ("batch_size", 1), ("image_size", 16)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} is {getattr(self, name)}: give at least {least}")
        if not 0 < self.fps < math.inf:
            raise UserError(f"--fps is {self.fps}: give a finite number above 0")
        if self.min_gap is not None and not 0 <= self.min_gap < math.inf:
            raise UserError(f"--min_gap is {self.min_gap}: give a finite number, 0 or more")
        try:
            _ = self.grid
        except ValueError as error:
            raise UserError(f"--regions {error}") from error
        if self.budget == "outline" and self.model is None:
            raise UserError("--budget outline is predicted by a trained model: give --model, or leave it out")
        if self.budget_pixels is not None:
            if self.regions is None:
                raise UserError("--budget_pixels counts pixels of windows: give --regions too, such as --regions 8x8")
            if self.budget_pixels < 1:
                raise UserError(f"--budget_pixels is {self.budget_pixels}: give at least 1")

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of `regions`."""
        return None if self.regions is None else grid_of(self.regions)
