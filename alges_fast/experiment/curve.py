"""A curve of an experiment: a strategy, and what it chooses, whole frames or windows of a grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from alges_fast.errors import UserError
from alges_fast.experiment.config import RunConfig, regions_of
from alges_fast.models import TUNED
from alges_fast.strategies import Strategy, get_strategy
from alges_fast.strategies.random import Random


@dataclass(frozen=True)
class Curve:
    """What is run once with every seed.

    Attributes:
        regions: rows and columns of windows in a frame; None where it chooses whole frames.
        n_rounds: how often its model is trained.
        query_size: frames, or as many frames' pixels, that it chooses after each training but the last.
    """

    strategy: Strategy
    regions: tuple[int, int] | None
    n_rounds: int
    query_size: int

    @property
    def grid(self) -> str:
        """The windows as the column `regions` of results.csv has them."""
        return "none" if self.regions is None else "{}x{}".format(*self.regions)

    @property
    def name(self) -> str:
        """Of its folder, and in the report: `alges-effort`, `alges-effort@8x8`."""
        return self.strategy.name if self.regions is None else f"{self.strategy.name}@{self.grid}"

    def n_labelled(self, config: RunConfig, n_pool: int, round: int) -> int:
        """Frames that are labelled in a round; with windows, as many frames' pixels."""
        return n_pool if self.strategy.takes_whole_pool else config.init_size + round * self.query_size

    def n_shown(self, config: RunConfig, n_pool: int, round: int) -> int:
        """Frames of an epoch of a whole network then, at most: those labelled, and those that have a window."""
        n = self.n_labelled(config, n_pool, round)
        if self.regions is None:
            return n
        windows = (n - config.init_size) * self.regions[0] * self.regions[1]
        return min(config.init_size + windows, n_pool)


def curves_of(config: RunConfig) -> list[Curve]:
    """Every strategy with each grid, or with the one behind its name; a strategy that takes the whole pool once.

    Raises:
        UserError: there is no strategy of a name, or two curves call themselves alike.
    """
    curves = []
    for text in config.strategies:
        own = re.fullmatch(r"(.+)@(none|\d+x\d+)", text)
        strategy = get_strategy(own[1] if own else text)()
        grids: Sequence[str] = [own[2]] if own else config.regions
        for grid in ["none"] if strategy.takes_whole_pool else grids:
            curves.append(Curve(strategy, regions_of(grid), *_steps(config, strategy)))
    names = [curve.name for curve in curves]
    if len(set(names)) < len(names):
        raise UserError(f"--strategies gives two strategies of one name: {', '.join(names)}")
    return curves


def check_budget(config: RunConfig, curves: Sequence[Curve], n_frames: int) -> None:
    """Refuse rounds that want more frames than the pool has. Raises UserError."""
    wanted = {curve: curve.n_labelled(config, n_frames, curve.n_rounds - 1) for curve in curves}
    longest = max(wanted, key=wanted.__getitem__)
    if wanted[longest] > n_frames:
        flags = "--rounds, --init_size or --query_size"
        if longest.strategy.name == Random.name and (config.random_rounds or config.random_query_size):
            flags = "--random_rounds, --init_size or --random_query_size"
        raise UserError(
            f"{longest.n_rounds} rounds of {config.init_size} + {longest.query_size} frames a query need "
            f"{wanted[longest]}, but the pool has {n_frames}: lower {flags}"
        )


def check_losses(config: RunConfig, curves: Sequence[Curve]) -> None:
    """Refuse trainings in two parts for a strategy with a loss of its own. Raises UserError."""
    asked = {
        f"--teacher {config.teacher}": config.teacher != "none",
        "--self_training": config.self_training > 0,
        f"--architecture {TUNED}": config.architecture == TUNED,
    }
    for flag in (flag for flag, is_asked in asked.items() if is_asked):
        for curve in curves:
            if type(curve.strategy).loss is not Strategy.loss:
                raise UserError(f"{flag}: strategy {curve.strategy.name} has a loss of its own: leave one")


def check_windows(config: RunConfig, curves: Sequence[Curve]) -> None:
    """Refuse grids finer than the pixels. Raises UserError."""
    for curve in curves:
        if curve.regions is not None and max(curve.regions) > config.image_size:
            raise UserError(f"--regions {curve.grid}: frames of {config.image_size} pixels have fewer windows a side")


def _steps(config: RunConfig, strategy: Strategy) -> tuple[int, int]:
    """How often it trains, and what it chooses after each training but the last."""
    if strategy.takes_whole_pool:
        return 1, config.query_size
    if strategy.name == Random.name:
        return config.random_rounds or config.rounds, config.random_query_size or config.query_size
    return config.rounds, config.query_size
