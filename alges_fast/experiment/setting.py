"""What the rounds of an experiment share, and what one of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alges_fast.data import Dataset, FrameSet
from alges_fast.data.frame_pool import FramePool
from alges_fast.errors import UserError
from alges_fast.experiment.annotator import Labelled
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.processes import Processes
from alges_fast.experiment.state import RoundFolder
from alges_fast.models import build_model
from alges_fast.random_streams import stream_seed
from alges_fast.strategies import Strategy, get_strategy

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

    def loading(self, done: int, total: int) -> None:
        """Frames decoded or drawn, of all."""


@dataclass(frozen=True)
class Setting:
    """What all rounds of an experiment share.

    Attributes:
        pool_images: the pool's images, (N, 3, S, S) uint8, on the device where they fit there.
        rows: the rows of results.csv that were read from finished rounds so far, by strategy, seed and round.
    """

    config: RunConfig
    strategies: Sequence[Strategy]
    dataset: Dataset
    processes: Processes
    monitor: Monitor
    pool_images: Tensor | npt.NDArray[np.uint8]
    rows: dict[tuple[str, int, int], dict[str, Any]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def pool(self) -> FrameSet:
        return self.dataset.train

    @property
    def scoring_batch(self) -> int:
        """Images the model is run on at a time."""
        return 64 if self.processes.device.type == "cuda" else 16

    def n_rounds(self, strategy: Strategy) -> int:
        return n_rounds(self.config, strategy)

    def labelled_first(self, strategy: Strategy, seed: int) -> Labelled:
        """What is labelled in the first round."""
        if strategy.takes_whole_pool:
            return Labelled(self.pool, self.pool.ids)
        drawn = initial_pool(len(self.pool), self.config.init_size, seed)
        return Labelled(self.pool, tuple(self.pool.ids[position] for position in drawn))

    @property
    def frames(self) -> FramePool:
        """All frames of the pool, for `to_input` to make the model's input of."""
        images = self.pool_images
        if isinstance(images, Tensor):
            return FramePool(self.pool.ids, images.__getitem__)
        return FramePool(self.pool.ids, lambda position: torch.from_numpy(np.array(images[position])))

    def work(self, strategy: Strategy) -> float:
        """What all rounds of a strategy and one seed cost, in training images."""
        config, rounds = self.config, self.n_rounds(strategy)
        first = len(self.pool) if strategy.takes_whole_pool else config.init_size
        return sum(self.round_work(first + r * config.query_size, r + 1 == rounds) for r in range(rounds))

    def round_work(self, n_frames: int, is_last: bool) -> float:
        """What a round costs that trains on so many frames."""
        scored = len(self.dataset.test) + (0 if is_last else len(self.pool))
        return self.config.epochs * n_frames + FORWARD_COST * scored


@dataclass(frozen=True)
class Round:
    """One round of one strategy and seed.

    Attributes:
        number: from 0 on.
        labelled: what the model is trained on.
    """

    setting: Setting
    strategy: Strategy
    seed: int
    number: int
    labelled: Labelled

    @property
    def folder(self) -> RoundFolder:
        return RoundFolder.of(self.setting.out, self.strategy.name, self.seed, self.number)

    @property
    def is_last(self) -> bool:
        """Whether nothing is chosen after it."""
        return self.number + 1 == self.setting.n_rounds(self.strategy)

    @property
    def work(self) -> float:
        """What it costs, in training images."""
        return self.setting.round_work(len(self.labelled.positions), self.is_last)

    @property
    def place(self) -> tuple[str, int, int]:
        """What names its row of results.csv."""
        return self.strategy.name, self.seed, self.number

    def __str__(self) -> str:
        rounds = self.setting.n_rounds(self.strategy)
        return f"{self.strategy.name}, seed {self.seed}, round {self.number + 1} of {rounds}"

    def new_model(self) -> nn.Module:
        """The network this round trains, its weights fixed by seed and round."""
        return new_model(self.setting.config, self.setting.dataset, self.strategy, self.seed, self.number)


def make_strategies(names: Sequence[str]) -> list[Strategy]:
    """The strategies of a configuration.

    Raises:
        UserError: there is none of a name, or two call themselves alike.
    """
    strategies = [get_strategy(name)() for name in names]
    own_names = [strategy.name for strategy in strategies]
    if len(set(own_names)) < len(own_names):
        raise UserError(f"--strategies gives two strategies of one name: {', '.join(own_names)}")
    return strategies


def check_budget(config: RunConfig, strategies: Sequence[Strategy], n_frames: int) -> None:
    """Refuse rounds that want more frames than the pool has. Raises UserError."""
    wanted = config.init_size + (config.rounds - 1) * config.query_size
    if wanted > n_frames and not all(strategy.takes_whole_pool for strategy in strategies):
        raise UserError(
            f"{config.rounds} rounds of {config.init_size} + {config.query_size} frames a query need {wanted}, but the "
            f"pool has {n_frames}: lower --rounds, --init_size or --query_size"
        )


def initial_pool(n_frames: int, init_size: int, seed: int) -> list[int]:
    """Positions of the frames that are labelled at the start: a uniform draw that depends on the seed alone."""
    generator = np.random.default_rng(stream_seed("initial pool", seed))
    return [int(position) for position in generator.permutation(n_frames)[:init_size]]


def n_rounds(config: RunConfig, strategy: Strategy) -> int:
    """How often a strategy's model is trained."""
    return 1 if strategy.takes_whole_pool else config.rounds


def new_model(config: RunConfig, dataset: Dataset, strategy: Strategy, seed: int, round: int) -> nn.Module:
    """The network that a strategy trains, its weights fixed by seed and round."""
    model = build_model(
        config.architecture,
        config.encoder,
        encoder_weights=config.encoder_weights,
        num_classes=len(dataset.classes),
        head_kernel=config.head_kernel,
        seed=stream_seed("weights", seed, round),
    )
    added = stream_seed("strategy's weights", seed, round)
    return strategy.prepare_model(model, len(dataset.classes), added)


def on_device_if_small(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor | npt.NDArray[np.uint8]:
    """The images on the GPU where they take at most a quarter of what is free there, else as they are."""
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return images
    return torch.from_numpy(np.array(images)).to(device)
