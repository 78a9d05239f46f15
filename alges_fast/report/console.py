"""The table that ends a run on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from alges_fast.report.run_folder import FULL, curve_name
from alges_fast.report.statistics import Row, areas, choosing_seconds, spread
from alges_fast.report.style import in_order
from alges_fast.report.tables import mean_sd


def summary_table(rows: Sequence[Row], rounds: int | None = None) -> Table:
    """One line per strategy: Dice after its last training and over its curve, mean ± sd over seeds, and its cost.

    Args:
        rows: rows of results.csv, numbers as numbers.
        rounds: trainings that every curve is compared over, where some have more.
    """
    rows = [{**row, "strategy": curve_name(row)} for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("strategy", no_wrap=True)
    for name in ("seeds", "images", "Dice", "AULC", "select", "train"):
        table.add_column(name, justify="right", no_wrap=True)
    of_curve = areas([row for row in rows if row["strategy"] != FULL and (rounds is None or row["round"] < rounds)])
    for strategy in in_order(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == strategy]
        seeds = len({row["seed"] for row in own})
        most = max(row["n_labelled"] for row in own)
        last = spread(row["dice"] for row in own if row["n_labelled"] == most)
        area = spread(of_curve.get(strategy, {}).values())
        table.add_row(
            strategy,
            str(seeds),
            str(most),
            mean_sd(last, of=seeds),
            mean_sd(area, of=seeds) if area.n else "",
            _seconds(sum(part.mean for part in choosing_seconds(own))) if strategy != FULL else "",
            _seconds(spread(row["train_seconds"] for row in own).mean),
        )
    table.caption = (
        "mean ± sd over seeds; AULC: mean Dice over the learning curve; select, train: mean per query and training"
    )
    table.caption_justify = "left"
    return table


def _seconds(mean: float) -> str:
    if mean != mean:
        return "–"
    return f"{mean * 1e3:.0f} ms" if mean < 1 else f"{mean:.1f} s" if mean < 120 else f"{mean / 60:.1f} min"
