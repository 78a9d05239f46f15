"""What the rounds of an experiment share, and what one of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alges_fast.data import Dataset, FrameSet
from alges_fast.data.frame_pool import FramePool
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.curve import Curve
from alges_fast.experiment.processes import Processes
from alges_fast.experiment.state import RoundFolder
from alges_fast.models.coded_maps import KeptMaps
from alges_fast.random_streams import stream_seed
from alges_fast.strategies import Strategy
from alges_fast.training.labelled import Labelled, Piece
from alges_fast.training.learner import Learner
from alges_fast.windows import windows_of

FORWARD_COST = 1 / 3
"""Work of a forward pass over an image in units of a training step's; only the time left is estimated from it."""


class Monitor:
    """What a run tells while it goes; this one keeps it to itself."""

    def start(self, work: float) -> None:
        """The run begins; `work` in training images."""

    def advance(self, work: float) -> None:
        """So much of it is done."""

    def doing(self, what: str) -> None:
        """What is being done now."""

    def note(self, line: str) -> None:
        """A line worth keeping."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """What is done with frames before the first round, and with how many of all it is done."""


@dataclass(frozen=True)
class Setting:
    """What all rounds of an experiment share.

    Attributes:
        pool_inputs, test_inputs: what the learner is given of the frames, (N, C, h, w); the pool's are on the device
            where they fit there.
        rows: the rows of results.csv that were read from finished rounds so far, by curve, seed and round.
    """

    config: RunConfig
    curves: Sequence[Curve]
    dataset: Dataset
    processes: Processes
    monitor: Monitor
    learner: Learner
    pool_inputs: Tensor | KeptMaps
    test_inputs: KeptMaps
    rows: dict[tuple[str, int, int], dict[str, Any]] = field(default_factory=dict)
    first_trainings: dict[int, tuple[Mapping[str, Tensor], float, float]] = field(default_factory=dict)
    """By seed: a network's state on the CPU, the loss it reached and the seconds it took; see `Round.is_trained_alike`.
    One seed's at a time, as curves of a seed follow one another."""
    _pieces: dict[tuple[int, int] | None, frozenset[Piece]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def pool(self) -> FrameSet:
        return self.dataset.train

    @property
    def scoring_batch(self) -> int:
        """Images the model is run on at a time."""
        if self.processes.device.type == "cuda":
            return 64
        return 32 if self.learner.is_frozen else 16  # features are small, and scored where they lie

    def pieces(self, curve: Curve) -> frozenset[Piece]:
        """All that a curve may choose from: the pool's frames, or their windows."""
        if curve.regions not in self._pieces:
            size = self.pool.masks.shape[1:]
            self._pieces[curve.regions] = frozenset(
                self.pool.ids
                if curve.regions is None
                else (window for id in self.pool.ids for window in windows_of(id, size, curve.regions))
            )
        return self._pieces[curve.regions]

    def labelled_first(self, curve: Curve, seed: int) -> Labelled:
        """What is labelled in the first round: whole frames."""
        if curve.strategy.takes_whole_pool:
            return Labelled(self.pool).with_pieces(self.pool.ids)
        drawn = initial_pool(len(self.pool), self.config.init_size, seed)
        return Labelled(self.pool).with_pieces([self.pool.ids[position] for position in drawn])

    @property
    def frames(self) -> FramePool:
        """All frames of the pool, for the learner's `transform` to make the model's input of."""
        inputs = self.pool_inputs
        if isinstance(inputs, np.ndarray) and inputs.flags.writeable:
            inputs = torch.from_numpy(inputs)  # as torch wants it; of what a map may write to, only memory is changed
        if isinstance(inputs, Tensor):
            return FramePool(self.pool.ids, inputs.__getitem__, inputs)
        return FramePool(self.pool.ids, lambda position: torch.from_numpy(np.array(inputs[position])))

    def work(self, curve: Curve) -> float:
        """What all rounds of a curve and one seed cost, in training images."""
        return sum(self.round_work(curve, number) for number in range(curve.n_rounds))

    def round_work(self, curve: Curve, number: int) -> float:
        """What a round costs."""
        is_last, n_frames = number + 1 == curve.n_rounds, curve.n_shown(self.config, len(self.pool), number)
        scored = len(self.dataset.test) + (0 if is_last else len(self.pool))
        return self.learner.training_work(n_frames) + FORWARD_COST * scored


@dataclass(frozen=True)
class Round:
    """One round of one curve and seed.

    Attributes:
        labelled: what the model is trained on.
    """

    setting: Setting
    curve: Curve
    seed: int
    number: int
    labelled: Labelled

    @property
    def strategy(self) -> Strategy:
        return self.curve.strategy

    @property
    def folder(self) -> RoundFolder:
        return RoundFolder.of(self.setting.out, self.curve.name, self.seed, self.number)

    @property
    def is_last(self) -> bool:
        """Whether nothing is chosen after it."""
        return self.number + 1 == self.curve.n_rounds

    @property
    def is_trained_alike(self) -> bool:
        """Whether every other such round of the same seed trains the same network on the same frames in the same order:
        the first of a strategy with nothing of its own in the network or the loss."""
        kind = type(self.strategy)
        plain = kind.loss is Strategy.loss and kind.prepare_model is Strategy.prepare_model
        return self.number == 0 and plain and not kind.takes_whole_pool

    @property
    def n_labelled(self) -> int:
        """Frames labelled; with windows, as many frames' pixels, but for the rest of a window."""
        return self.curve.n_labelled(self.setting.config, len(self.setting.pool), self.number)

    @property
    def training_work(self) -> float:
        """What its training costs, in training images."""
        n_frames = self.curve.n_shown(self.setting.config, len(self.setting.pool), self.number)
        return self.setting.learner.training_work(n_frames)

    @property
    def work(self) -> float:
        """What it costs, in training images."""
        return self.setting.round_work(self.curve, self.number)

    @property
    def place(self) -> tuple[str, int, int]:
        """What names its row of results.csv."""
        return self.curve.name, self.seed, self.number

    def __str__(self) -> str:
        return f"{self.curve.name}, seed {self.seed}, round {self.number + 1} of {self.curve.n_rounds}"

    def new_model(self) -> nn.Module:
        """The network this round trains, its weights fixed by seed and round."""
        n_classes = len(self.setting.dataset.classes)
        network = self.setting.learner.new_network(n_classes, stream_seed("weights", self.seed, self.number))
        added = stream_seed("strategy's weights", self.seed, self.number)
        return self.strategy.prepare_model(network, n_classes, added)


def initial_pool(n_frames: int, init_size: int, seed: int) -> list[int]:
    """Positions of the frames that are labelled at the start: a uniform draw that depends on the seed alone."""
    generator = np.random.default_rng(stream_seed("initial pool", seed))
    return [int(position) for position in generator.permutation(n_frames)[:init_size]]


def on_device_if_small(images: KeptMaps, device: torch.device) -> Tensor | KeptMaps:
    """These on the GPU where they take at most a quarter of what is free there, else as they are."""
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return images
    return torch.from_numpy(np.array(images[:])).to(device)
