"""Label saving: how much more labelling a baseline needs for the Dice that a strategy reaches, as a factor.

A strategy has spent x of a measure (outline drawn, pixels) when its mean test Dice is y. The baseline, random frames
by default, needs X(y): the place where its own mean curve, straight between its trainings, first reaches y. The
saving is X(y) / x: 2 says that the strategy gets there with half the labelling.

Two choices, both against the strategy:
- A mean curve of few seeds dips; "first reaches" reads it as its running maximum, so an upward accident of the baseline
  counts as reached and a dip after it does not raise X.
- Dice above the baseline's highest gives a lower bound ("> 2.9"), X of the baseline's last training: nothing is
  extrapolated. Dice below its lowest gives an upper bound in the same way.

Intervals are bootstrapped over the seeds that both have finished, paired: a resampled seed brings both curves, because
they begin from the same labelled frames. Each resample's means give a saving or a bound. A bound's unknown side is kept
open: at the upper end of the interval a lower bound counts as infinite, at the lower end as its value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from alges_fast.prices import HIGH, LOW, Prices
from alges_fast.report.statistics import LEVEL, Row, complete_runs

RESAMPLES = 2000
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """What labelling is counted in, a row of `MEASURES`.

    Attributes:
        column: of results.csv.
        name: in a sentence: "outline drawn".
        less: what a saving is of: "2 times LESS".
        axis: of the learning curve over it; empty where none is drawn.
        unit: how much of it is 1 on that axis; None for what an average whole frame takes.
        log: whether that axis is logarithmic.
        windows: of which runs it is told, those that chose windows or those that did not; None of both.
        prices: where it is in seconds by these, `column` being what is drawn.
        pictures: the column of pictures opened, where there are prices.
    """

    column: str
    name: str
    less: str = ""
    axis: str = ""
    unit: float | None = None
    log: bool = False
    windows: bool | None = None
    prices: Prices | None = None
    pictures: str = "pictures"

    def of(self, row: Row) -> float:
        """What a row of results.csv has spent; NaN where that was not recorded."""
        drawn: float = row.get(self.column, math.nan)
        if self.prices is None:
            return drawn
        pictures, looks, side = (row.get(name, math.nan) for name in (self.pictures, "windows", "side"))
        return self.prices.seconds(pictures=pictures, looks=looks, outline=drawn, side=side)


SECONDS = Measure("seconds", "annotating time", "less time", "hours of annotating, by assumed prices", 3600.0)
CORRECTING = Measure("seconds_corrected", "time of correcting predictions", "less time")
OUTLINE = Measure("outline", "outline drawn", "less drawing", "outline drawn, in average whole frames")
PIXELS = Measure("labelled_share", "pixels labelled", "fewer pixels", "pixels labelled, in whole frames", windows=True)
PRICED = (
    Measure("outline", "time by low prices", windows=True, prices=LOW),
    Measure("outline", "time by high prices", windows=True, prices=HIGH),
    Measure("outline", "time, windows in their frames", windows=True, prices=Prices(), pictures="openings"),
    Measure("outline", "the same by high prices", windows=True, prices=HIGH, pictures="openings"),
)
FRAMES = Measure("n_frames", "frames opened", "fewer frames", "frames opened", 1.0, log=True, windows=True)
IMAGES = Measure("n_labelled", "frames labelled", "fewer labelled frames", windows=False)
MEASURES = (SECONDS, CORRECTING, OUTLINE, PIXELS, *PRICED, FRAMES, IMAGES)
"""All that a report counts: curves, savings and distances to full supervision, in this order."""

FULL_PART = 0.95
"""The part of full supervision's Dice that is asked after."""


@dataclass(frozen=True)
class Factor:
    """A factor, or a bound of one.

    Attributes:
        factor: one amount of labelling over another.
        bound: ">" where the truth is above `factor`, "<" where it is below, else "".
        low, high: 95 % interval; high is infinite where nothing bounds it; NaN with fewer than two seeds.
        n: seeds.
    """

    factor: float
    bound: Literal["", "<", ">"]
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Saving(Factor):
    """What the baseline needs over what a strategy spent.

    Attributes:
        dice: the mean Dice that the strategy reached.
        frames: how many labelled frames gave the baseline that Dice; its last training's where `bound` is ">".
    """

    dice: float
    frames: float


def savings(
    rows: Sequence[Row], strategy: str, baseline: str = "random", measure: Measure = OUTLINE
) -> dict[int, Saving]:
    """The saving after each of the strategy's trainings but the first, by `n_labelled`.

    The first has labelled the same frames as the baseline's: its saving is 1 and says nothing.

    Args:
        rows: of results.csv; those of both strategies need the measure's column.

    Returns:
        Nothing where the two have no finished seed in common, or the measure was not recorded.
    """
    curves = [complete_runs(rows, name) for name in (strategy, baseline)]
    seeds = sorted(curves[0].keys() & curves[1].keys())
    if not seeds:
        return {}
    weights = _resamples(len(seeds))
    (x, y), (base_x, base_y) = (_means([of[each] for each in seeds], measure, weights) for of in curves)
    if not (np.isfinite(x).all() and np.isfinite(base_x).all() and (x > 0).all()):
        return {}
    points, base_points = ([row["n_labelled"] for row in of[seeds[0]]] for of in curves)
    needed, sides = first_reached(base_x, base_y, y)
    frames, _ = first_reached(np.broadcast_to(np.array(base_points, np.float64), base_y.shape), base_y, y)
    return {
        n: Saving(*_factor(needed[:, i] / x[:, i], sides[:, i], len(seeds)), float(y[0, i]), float(frames[0, i]))
        for i, n in list(enumerate(points))[1:]
    }


def share_of_full(rows: Sequence[Row], full: Sequence[Row], strategy: str, measure: Measure) -> Factor | None:
    """What a strategy takes until its mean curve first reaches `FULL_PART` of full supervision's mean Dice, over what
    full supervision takes; a lower bound where its curve ends before. None where the measure was not recorded.

    The interval is of the strategy's seeds; full supervision is taken as its mean.
    """
    curves = complete_runs(rows, strategy)
    if not curves:
        return None
    runs = [*curves.values()]
    x, y = _means(runs, measure, _resamples(len(runs)))
    (amount,), (level,) = (of[0] for of in _means([[row] for row in full], measure, _resamples(len(full))))
    needed, sides = first_reached(x, y, np.full((len(x), 1), FULL_PART * level))
    share = needed[:, 0] / amount
    return Factor(*_factor(share, sides[:, 0], len(runs))) if np.isfinite(share).all() else None


def measures_of(rows: Sequence[Row], *, windows: bool) -> list[Measure]:
    """The measures of a run that its rows have."""
    of_run = [measure for measure in MEASURES if measure.windows in (None, windows)]
    return [measure for measure in of_run if np.isfinite([measure.of(row) for row in rows]).all()]


def of_a_frame(rows: Sequence[Row], column: str) -> float:
    """A column's mean over frames, of rows that have labelled whole ones: those that runs begin with."""
    total, frames = (math.fsum(row.get(name, math.nan) for row in rows) for name in (column, "n_frames"))
    return total / frames if frames else math.nan


def first_reached(x: Values, y: Values, levels: Values) -> tuple[Values, npt.NDArray[np.int64]]:
    """Where curves first reach levels, on straight lines between their points.

    Args:
        x: (B, P), increasing.
        y: (B, P), the curves' heights.
        levels: (B, L).

    Returns:
        (B, L) places, and (B, L) sides: 1 where a level is above the curve and the place is its last x, -1 where it is
        below its first point and the place is its first x, else 0.
    """
    envelope = np.maximum.accumulate(y, axis=1)
    reached = envelope[:, None, :] >= levels[:, :, None]
    after = np.where(reached.any(-1), reached.argmax(-1), y.shape[1] - 1)
    before = np.maximum(after - 1, 0)
    rows = np.arange(len(x))[:, None]
    bottom, top = y[rows, before], y[rows, after]
    step = np.where(top > bottom, top - bottom, 1.0)
    part = np.clip((levels - bottom) / step, 0.0, 1.0)
    places = np.where(after == before, x[rows, after], x[rows, before] + part * (x[rows, after] - x[rows, before]))
    above, below = levels > envelope[:, -1:], levels < y[:, :1]
    places = np.where(above, x[:, -1:], np.where(below, x[:, :1], places))
    return places, above.astype(np.int64) - below.astype(np.int64)


def _resamples(n: int) -> Values:
    """(resamples, seeds) of weights: the first line is the sample itself, the others are resamples of its seeds."""
    draws = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    return np.stack([np.bincount(draw, minlength=n) for draw in (np.arange(n), *draws)]) / n


def _means(runs: Sequence[Sequence[Row]], measure: Measure, weights: Values) -> tuple[Values, Values]:
    """(resamples, points) of the measure's and the Dice's means over seeds."""
    spent = np.array([[measure.of(row) for row in run] for run in runs], np.float64)
    return weights @ spent, weights @ np.array([[row["dice"] for row in run] for run in runs], np.float64)


def _factor(
    factors: Values, sides: npt.NDArray[np.int64], n: int
) -> tuple[float, Literal["", "<", ">"], float, float, int]:
    """Factors of the sample and of its resamples as one with its interval."""
    low = high = math.nan
    if n > 1:
        low = float(np.quantile(np.where(sides[1:] < 0, 0.0, factors[1:]), LEVEL / 2, method="inverted_cdf"))
        high = float(np.quantile(np.where(sides[1:] > 0, np.inf, factors[1:]), 1 - LEVEL / 2, method="inverted_cdf"))
    return float(factors[0]), ">" if sides[0] > 0 else "<" if sides[0] < 0 else "", low, high, n
