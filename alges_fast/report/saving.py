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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from alges_fast.report.statistics import LEVEL, Row

RESAMPLES = 2000
PRICES = (0.02, 0.1)
"""What opening a frame may cost beside drawing, in outlines of an average whole frame: one fiftieth, one tenth."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """What labelling is counted in: `outline + price x frames opened`, or a column of results.csv.

    Attributes:
        column: of results.csv.
        name: in a sentence: "outline drawn".
        price: of an opened frame, in average whole frames' outlines; see `PRICES`.
    """

    column: str
    name: str
    price: float = 0.0


OUTLINE = Measure("outline", "outline drawn")
PIXELS = Measure("labelled_share", "pixels labelled")
FRAMES = Measure("n_frames", "frames opened")
PRICED = tuple(Measure("outline", f"outline drawn, {100 * p:g} % of a frame's more for each opened", p) for p in PRICES)


@dataclass(frozen=True)
class Saving:
    """A factor, or a bound of one.

    Attributes:
        factor: labelling the baseline needs over what the strategy spent.
        bound: ">" where the truth is above `factor`, "<" where it is below, else "".
        low, high: 95 % interval; high is infinite where nothing bounds it; NaN with fewer than two seeds.
        dice: the mean Dice that the strategy reached.
        spent: what it had spent, in the measure.
        frames: how many labelled frames gave the baseline that Dice; its last training's where `bound` is ">".
        n: seeds.
    """

    factor: float
    bound: Literal["", "<", ">"]
    low: float
    high: float
    dice: float
    spent: float
    frames: float
    n: int


def savings(
    rows: Sequence[Row], strategy: str, baseline: str = "random", measure: Measure = OUTLINE, *, seed: int = 0
) -> dict[int, Saving]:
    """The saving after each of the strategy's trainings but the first, by `n_labelled`.

    The first has labelled the same frames as the baseline's: its saving is 1 and says nothing.

    Args:
        rows: of results.csv; those of both strategies need the measure's column.
        seed: of the bootstrap.

    Returns:
        Nothing where the two have no finished seed in common, or the measure was not recorded.
    """
    points = [sorted({row["n_labelled"] for row in rows if row["strategy"] == name}) for name in (strategy, baseline)]
    tables = [
        {(row["seed"], row["n_labelled"]): row for row in rows if row["strategy"] == name}
        for name in (strategy, baseline)
    ]
    seeds = sorted(
        seed
        for seed in {row["seed"] for row in rows}
        if all(all((seed, n) in table for n in at) for table, at in zip(tables, points, strict=True))
    )
    if not seeds or not all(points):
        return {}
    price = measure.price and measure.price * _outline_of_a_frame([tables[1][seed, points[1][0]] for seed in seeds])
    (spent, dice), (base_spent, base_dice) = (
        _columns(table, seeds, at, measure.column, price) for table, at in zip(tables, points, strict=True)
    )
    if not (np.isfinite(spent).all() and np.isfinite(base_spent).all() and (spent > 0).all()):
        return {}
    # The first line of weights is the sample itself, the others are resamples of its seeds.
    draws = np.random.default_rng(seed).integers(len(seeds), size=(RESAMPLES, len(seeds)))
    weights = np.stack([np.bincount(draw, minlength=len(seeds)) for draw in (np.arange(len(seeds)), *draws)])
    x, y, base_x, base_y = (weights @ column / len(seeds) for column in (spent, dice, base_spent, base_dice))
    needed, sides = first_reached(base_x, base_y, y)
    frames, _ = first_reached(np.broadcast_to(np.array(points[1], np.float64), base_y.shape), base_y, y)
    factors = needed / x
    found = {}
    for i, n in list(enumerate(points[0]))[1:]:
        low, high = _interval(factors[1:, i], sides[1:, i]) if len(seeds) > 1 else (math.nan, math.nan)
        side = int(sides[0, i])
        found[n] = Saving(
            factor=float(factors[0, i]),
            bound=">" if side > 0 else "<" if side < 0 else "",
            low=low,
            high=high,
            dice=float(y[0, i]),
            spent=float(x[0, i]),
            frames=float(frames[0, i]),
            n=len(seeds),
        )
    return found


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


def _columns(
    table: Mapping[tuple[int, int], Row], seeds: Sequence[int], points: Sequence[int], column: str, price: float
) -> tuple[Values, Values]:
    """(seeds, points) of the measure and of the Dice."""
    found = [[table[seed, n] for n in points] for seed in seeds]
    spent = [[row.get(column, math.nan) + (price * row["n_frames"] if price > 0 else 0.0) for row in r] for r in found]
    return np.array(spent, np.float64), np.array([[row["dice"] for row in run] for run in found], np.float64)


def _outline_of_a_frame(rows: Sequence[Row]) -> float:
    """Mean outline of the frames that runs begin with, which are whole ones whatever they choose afterwards."""
    outline, frames = (math.fsum(row.get(name, math.nan) for row in rows) for name in ("outline", "n_frames"))
    return outline / frames


def _interval(factors: Values, sides: npt.NDArray[np.int64]) -> tuple[float, float]:
    low = np.quantile(np.where(sides < 0, 0.0, factors), LEVEL / 2, method="inverted_cdf")
    high = np.quantile(np.where(sides > 0, np.inf, factors), 1 - LEVEL / 2, method="inverted_cdf")
    return float(low), float(high)
