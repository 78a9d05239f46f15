"""What choosing windows adds, over several data sets, as Markdown: `python bench/evidence.py RUN...`.

RUN is the folder of a `run` with random frames, random windows, `full`, and strategies over windows of the same grid;
A+B+C is several as one, as the folds of a data set are: every seed of each counts by itself.
Two tables: mean Dice above random windows over the part of a cost that both curves cover, paired by seed (95 % interval
of a paired t-test; * where Holm's correction over a cost's column leaves p < .01); and what part of full
supervision's cost it takes until the mean curve first reaches 95 % of full supervision's Dice (bootstrapped over
seeds). Seeds that are not finished are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alges_fast.prices import HIGH, LOW
from alges_fast.report.run_folder import FULL, RANDOM, read_results
from alges_fast.report.saving import OUTLINE, PIXELS, SECONDS, Factor, Measure, share_of_full
from alges_fast.report.statistics import Comparison, compare_differences, differences_at_equal
from alges_fast.report.style import parts

COSTS = (
    replace(SECONDS, name="seconds"),
    replace(SECONDS, column="outline", name="seconds, low prices", prices=LOW),
    replace(SECONDS, column="outline", name="seconds, high prices", prices=HIGH),
    Measure("seconds_corrected", "seconds, correcting"),
    replace(OUTLINE, name="outline"),
    replace(PIXELS, name="pixels"),
)

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+")
    runs = dict(map(read, parser.parse_args().runs))
    print("\n".join([*leads(runs), "", *shares(runs)]))


def read(run: str) -> tuple[str, Rows]:
    """What a run, or several, is called, and its rows with every cost as a column of its name."""
    folders = [Path(folder) for folder in run.split("+")]
    rows = [
        {**row, "seed": f"{folder.name} {row['seed']}", **{cost.name: cost.of(row) for cost in COSTS}}
        for folder in folders
        for row in read_results(folder / "results.csv")
    ]
    return folders[0].name.rstrip("0123456789" if len(folders) > 1 else ""), rows


def leads(runs: Mapping[str, Rows]) -> Iterator[str]:
    """A line for each data set and curve: how far it lies above random windows, by each cost."""
    yield from heading("above random windows, Dice", "seeds")
    pairs = [
        (name, curve, base) for name, rows in runs.items() for base in windows(rows) for curve in others(rows, base)
    ]
    by_pair = {}
    for cost in COSTS:
        tests = compare_differences(
            (f"{name}: {curve}", cost.name, differences_at_equal(runs[name], curve, base, cost.name))
            for name, curve, base in pairs
        )
        by_pair |= {(test.first, test.second): test for test in tests}
    for name, curve, _ in pairs:
        told = [by_pair.get((f"{name}: {curve}", cost.name)) for cost in COSTS]
        if seeds := {test.n for test in told if test}:
            yield f"| {name}, `{curve}` | {min(seeds)} | {' | '.join(map(dice, told))} |"


def shares(runs: Mapping[str, Rows]) -> Iterator[str]:
    """A line for each data set and curve: the part of full supervision's cost for 95 % of its Dice."""
    yield from heading("part of full supervision's cost for 95 % of its Dice", "seeds")
    for name, rows in runs.items():
        full = [row for row in rows if row["strategy"] == FULL]
        if not full:
            continue
        for curve in dict.fromkeys(row["strategy"] for row in rows if row["strategy"] != FULL):
            factors = [share_of_full(rows, full, curve, replace(cost, column=cost.name, prices=None)) for cost in COSTS]
            n = next((factor.n for factor in factors if factor), 0)
            yield f"| {name}, `{curve}` | {n} | {' | '.join(map(percent, factors))} |"


def heading(what: str, seeds: str) -> Iterator[str]:
    yield f"| {what} | {seeds} | {' | '.join(cost.name for cost in COSTS)} |"
    yield "|---" * (2 + len(COSTS)) + "|"


def dice(test: Comparison | None) -> str:
    if test is None:
        return ""
    return f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f}){'*' * (test.p_holm < 0.01)}"


def percent(factor: Factor | None) -> str:
    if factor is None:
        return ""
    high = "?" if factor.high == float("inf") else f"{factor.high:.1%}"
    return f"{factor.bound} {factor.factor:.1%} ({factor.low:.1%} to {high})".strip().replace("%", " %")


def windows(rows: Rows) -> list[str]:
    """Curves of random windows."""
    return [curve for curve in dict.fromkeys(row["strategy"] for row in rows) if curve.startswith(f"{RANDOM}@")]


def others(rows: Rows, base: str) -> list[str]:
    """Random frames, and the curves of the same grid."""
    names = dict.fromkeys(row["strategy"] for row in rows)
    return [name for name in names if name == RANDOM or (name != base and parts(name)[1] == parts(base)[1])]


if __name__ == "__main__":
    main()
