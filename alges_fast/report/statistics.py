"""What a few seeds can and cannot say: spreads, areas under learning curves, paired comparisons.

A table is a sequence of rows; a row maps at least `strategy`, `seed`, `round` and `n_labelled` to their values, beside
the metrics. Strategies are compared seed by seed, because runs with one seed begin from the same labelled images: what
that start gives or takes is common to both and cancels in the difference.

Intervals are Student's t, 95 %, two-sided, as fits means of few values of unknown variance. Comparisons use the paired
t-test instead of Wilcoxon's signed ranks: with n seeds the latter's smallest possible p is 2 / 2^n, 0.25 for three
seeds and 0.0625 for five, so it could not separate anything however large the difference. The price is the assumption
that differences between seeds are roughly normal, which few seeds cannot check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median_low
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """Mean of n values, standard deviation (n - 1) and 95 % interval of the mean; NaN where n does not allow one."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """`first` minus `second`, paired over `n` seeds; `p_holm` is p corrected for the family it was tested in."""

    first: str
    second: str
    n: int
    difference: float
    sd: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def separates(self) -> bool:
        """Whether the difference is significant at 5 % after Holm's correction."""
        return self.p_holm < LEVEL

    @property
    def side(self) -> str:
        """Where `first` lies: "above" or "below" `second`, or "not separate"."""
        return ("above" if self.difference > 0 else "below") if self.separates else "not separate"


def spread(values: Iterable[float]) -> Spread:
    """Mean and spread of values, e.g. of one per seed."""
    sample = np.asarray(list(values), dtype=np.float64)
    n = len(sample)
    mean = float(sample.mean()) if n else math.nan
    if n < 2:
        return Spread(n, mean, math.nan, math.nan, math.nan)
    sd = float(sample.std(ddof=1))
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    return Spread(n, mean, sd, mean - half, mean + half)


def learning_curves(rows: Sequence[Row], metric: str = "dice") -> dict[str, dict[int, Spread]]:
    """Spread over seeds by strategy and number of labelled images, both in the table's and in ascending order."""
    values: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        values.setdefault(row["strategy"], {}).setdefault(row["n_labelled"], []).append(row.get(metric, math.nan))
    return {name: {n: spread(curve[n]) for n in sorted(curve)} for name, curve in values.items()}


def curves_over(rows: Sequence[Row], column: str) -> dict[str, dict[float, Spread]]:
    """Spread of the Dice over seeds by strategy and by the mean of a measure after each training, such as "outline"."""
    dice, spent = learning_curves(rows), learning_curves(rows, column)
    return {
        name: {spent[name][n].mean: at for n, at in curve.items() if math.isfinite(spent[name][n].mean)}
        for name, curve in dice.items()
    }


def area_under_curve(n_labelled: Sequence[float], values: Sequence[float]) -> float:
    """Trapezoid over n_labelled divided by its range: the curve's mean height, in the unit of the values.

    One point gives its value.

    Raises:
        ValueError: no points, or n_labelled does not increase.
    """
    x, y = np.asarray(n_labelled, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if not len(x) or len(x) != len(y) or (np.diff(x) <= 0).any():
        raise ValueError(f"n_labelled is {list(n_labelled)} for {len(y)} values; expected as many, increasing")
    if len(x) == 1:
        return float(y[0])
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def choosing_seconds(rows: Sequence[Row]) -> tuple[Spread, Spread]:
    """Embedding and seeding, over the rounds that took time to choose: a run's last round asks for nothing."""
    asked = [row for row in rows if row["embed_seconds"] + row["seeding_seconds"] > 0]
    return spread(row["embed_seconds"] for row in asked), spread(row["seeding_seconds"] for row in asked)


def areas(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """Area under the learning curve of the Dice by strategy and seed.

    Curves of different lengths do not compare, so a seed counts only where it has every point that any run in the table
    has. Leave out strategies that are not a curve (`full`).
    """
    n_points = len({row["n_labelled"] for row in rows})
    return {
        name: {
            seed: area_under_curve([row["n_labelled"] for row in run], [row["dice"] for row in run])
            for seed, run in sorted(runs.items())
            if len(run) == n_points
        }
        for name, runs in by_run(rows).items()
    }


def compare(
    values: Mapping[str, Mapping[int, float]], pairs: Iterable[tuple[str, str]] | None = None
) -> list[Comparison]:
    """Paired t-tests of values[strategy][seed] as one family, with Holm's correction.

    Args:
        values: one value per strategy and seed, e.g. from `areas`.
        pairs: which strategies to compare; default every pair.

    Returns:
        One comparison per pair with at least two seeds in common, in the order of pairs.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6 (1979).
    """
    differences = []
    for first, second in combinations(values, 2) if pairs is None else pairs:
        seeds = sorted(values[first].keys() & values[second].keys())
        differences.append((first, second, {seed: values[first][seed] - values[second][seed] for seed in seeds}))
    return compare_differences(differences)


def compare_differences(differences: Iterable[tuple[str, str, Mapping[int, float]]]) -> list[Comparison]:
    """The same of (first, second, difference by seed), however the differences were made."""
    tested = []
    for first, second, by_seed in differences:
        if len(by_seed) < 2:
            continue
        of_difference = spread(by_seed.values())
        tested.append(
            Comparison(
                first=first,
                second=second,
                n=of_difference.n,
                difference=of_difference.mean,
                sd=of_difference.sd,
                low=of_difference.low,
                high=of_difference.high,
                p=_paired_t(of_difference),
                p_holm=math.nan,
            )
        )
    corrected = holm([comparison.p for comparison in tested])
    return [replace(comparison, p_holm=p) for comparison, p in zip(tested, corrected, strict=True)]


def differences_at_equal(rows: Sequence[Row], first: str, second: str, column: str) -> dict[int, float]:
    """Mean Dice of `first` minus that of `second` over the part of a measure that both curves cover, by seed.

    Curves are straight between their trainings. A seed counts where both have all of their points and share more of
    the measure than a point. What one strategy spends beyond the other is left out, not extrapolated.

    Args:
        column: the measure, such as "outline": does not fall from one training to the next.
    """
    found = {}
    runs = [complete_runs(rows, name) for name in (first, second)]
    for seed in sorted(runs[0].keys() & runs[1].keys()):
        curves = [_curve(run[seed], column) for run in runs]
        low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
        if low < high:  # false for NaN too: the measure was not recorded
            between = np.unique(np.clip(np.concatenate([x for x, _ in curves]), low, high))
            heights = [area_under_curve(between, np.interp(between, *curve)) for curve in curves]
            found[seed] = heights[0] - heights[1]
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def smallest_resolvable(comparisons: Sequence[Comparison]) -> float:
    """The true difference that these comparisons would have found with a probability of 80 %; NaN without comparisons.

    For a paired t-test with the comparisons' pooled standard deviation and median number of seeds, at the level that
    Holm's first step asks of the smallest p, 5 % over the number of comparisons.
    """
    if not comparisons:
        return math.nan
    n = median_low(comparison.n for comparison in comparisons)
    weights = [comparison.n - 1 for comparison in comparisons]
    pooled = math.sqrt(np.average([comparison.sd**2 for comparison in comparisons], weights=weights))
    return resolvable_effect(n, LEVEL / len(comparisons)) * pooled / math.sqrt(n)


def resolvable_effect(n: int, level: float = LEVEL) -> float:
    """The mean, in standard errors, that a two-sided one-sample t-test of n values finds with probability `POWER`."""
    critical = stats.t.ppf(1 - level / 2, n - 1)
    # The power is averaged over the sample standard deviation's distribution (midpoints of 4000 equal slices of
    # probability): the noncentral t's own tail function loses its digits at the large arguments of two or three seeds.
    slices = (np.arange(4000) + 0.5) / 4000
    threshold = critical * np.sqrt(stats.chi2.ppf(slices, n - 1) / (n - 1))

    def excess(effect: float) -> float:
        found = stats.norm.sf(threshold - effect) + stats.norm.cdf(-threshold - effect)
        return float(found.mean()) - POWER

    return float(optimize.brentq(excess, 0.0, threshold[-1] + 10.0))


def complete_runs(rows: Sequence[Row], strategy: str) -> dict[int, list[Row]]:
    """By seed, the rows of those that have every training that any seed has, in order."""
    runs = by_run(rows).get(strategy, {})
    longest = max(map(len, runs.values()), default=0)
    return {seed: run for seed, run in runs.items() if len(run) == longest}


def by_run(rows: Sequence[Row]) -> dict[str, dict[int, list[Row]]]:
    """Rows by strategy and seed, both as they come, in the order of their trainings."""
    runs: dict[str, dict[int, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: int(row["n_labelled"])):
        runs.setdefault(row["strategy"], {}).setdefault(row["seed"], []).append(row)
    names = dict.fromkeys(row["strategy"] for row in rows)
    return {name: runs[name] for name in names}


def _curve(run: Sequence[Row], column: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The measure and the Dice; of trainings that spent nothing in between, the last."""
    x, y = (np.array([row.get(name, math.nan) for row in run], np.float64) for name in (column, "dice"))
    last = np.append(np.diff(x) != 0, True)
    return x[last], y[last]


def _paired_t(of_difference: Spread) -> float:
    if of_difference.sd == 0:  # every seed gives the same difference: none at all, or one without any doubt
        return 1.0 if of_difference.mean == 0 else 0.0
    t = of_difference.mean / (of_difference.sd / math.sqrt(of_difference.n))
    return float(2 * stats.t.sf(abs(t), of_difference.n - 1))
