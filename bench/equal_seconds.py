"""Windows against random windows and random frames at equal cost: `python bench/equal_seconds.py RUN...`.

RUN holds results.csv of `run`: curves of one grid, and of random windows of it and random frames where there are any.
Printed is how much higher the mean Dice of each lies over the part of a cost that both curves cover, seeds paired, with
the 95 % interval of a paired t-test: over equal outline, over equal pixels, and over equal seconds by the prices of
docs/effort.md (low, taken, high). Seconds are counted here from frames, windows and outline, so that runs from before
results.csv had them can be compared too: windows on sheets of 30, each frame's worth of them in a query of its own.

Where random draws have fewer trainings than what they are compared with, there are two answers. With all trainings is a
little unfair to the random draws, since straight lines lie below a curve that bends down; with those after as many
labels as both have is unfair to what is chosen, whose lines are then the longer ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from alges_fast.prices import HIGH, LOW, Prices, sheets_for

POINTS = 2001
"""At which the straight lines between trainings are compared."""


def costs(rows: pd.DataFrame, side: int) -> Iterator[tuple[str, pd.Series]]:
    """Every cost by its name: one number for each row of a curve."""
    yield "outline", rows.outline
    yield "pixels", rows.labelled_share
    first = rows.n_labelled.min()
    more = rows.n_labelled - first
    grid = rows.regions.iloc[0]
    cells = 1 if grid == "none" else int(np.prod([int(part) for part in grid.split("x")]))
    pictures = first + more * (1 if cells == 1 else sheets_for(cells))
    for name, prices in (("low", LOW), ("taken", Prices()), ("high", HIGH)):
        looks = first + more * cells
        yield (
            f"seconds, {name}",
            prices.open * pictures + prices.look * looks + prices.draw * rows.outline / side,
        )


def lead(cost: pd.Series, dice: pd.Series, other_cost: pd.Series, other_dice: pd.Series) -> float:
    """How much higher the one curve lies than the other, in the mean over what both cover."""
    both = np.linspace(max(cost.min(), other_cost.min()), min(cost.max(), other_cost.max()), POINTS)
    return float((np.interp(both, cost, dice) - np.interp(both, other_cost, other_dice)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--image_size", type=int, default=192, help="of the runs")
    given = parser.parse_args()
    for run in given.runs:
        rows = pd.read_csv(run / "results.csv", keep_default_na=False, dtype={"regions": str})
        curves = {key: curve.sort_values("round") for key, curve in rows.groupby(["strategy", "regions", "seed"])}
        kinds = sorted({key[:2] for key in curves})
        for kind in kinds:
            for other in kinds:
                if other == kind or other[0] != "random" or other[1] not in (kind[1], "none"):
                    continue
                seeds = sorted(seed for *k, seed in curves if tuple(k) == kind and (*other, seed) in curves)
                for common in (False, True):
                    for name, leads in compare(curves, kind, other, seeds, given.image_size, common=common).items():
                        test = stats.ttest_1samp(leads, 0)
                        low, high = test.confidence_interval()
                        print(
                            f"{run.name}: {'@'.join(kind)} above {'@'.join(other)} over equal {name}, "
                            f"{'common' if common else 'all'} trainings: {np.mean(leads):+.4f} "
                            f"({low:+.4f} to {high:+.4f}), p {test.pvalue:.1g}, {len(leads)} seeds"
                        )


def compare(
    curves: dict[Any, pd.DataFrame],
    kind: tuple[str, str],
    other: tuple[str, str],
    seeds: list[int],
    side: int,
    *,
    common: bool,
) -> dict[str, list[float]]:
    """By the name of a cost: how much higher the one lies with each seed."""
    leads: dict[str, list[float]] = {}
    for seed in seeds:
        one, base = curves[(*kind, seed)], curves[(*other, seed)]
        if common:
            one = one[one.n_labelled.isin(base.n_labelled)]
        for (name, cost), (_, base_cost) in zip(costs(one, side), costs(base, side), strict=True):
            leads.setdefault(name, []).append(lead(cost, one.dice, base_cost, base.dice))
    return leads


if __name__ == "__main__":
    main()
