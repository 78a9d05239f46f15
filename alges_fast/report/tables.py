"""The report's tables, written once and rendered as Markdown or by the page's template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alges_fast.data.layouts.cholecseg8k import SYNTHETIC_NOTE
from alges_fast.report.findings import CurveSavings, Findings, at_half
from alges_fast.report.run_folder import RunFolder
from alges_fast.report.saving import Factor, Measure
from alges_fast.report.statistics import Comparison, Row, Spread, learning_curves, spread
from alges_fast.report.text import dice, factor, p_value, percent, signed

PAPER_POOL = 4640
PAPER_POINTS = (20, 90, 140, 230)
PAPER_TABLE_1: Mapping[str, tuple[float, ...]] = {  # Aklilu & Yeung 2022, mean test Dice over 3 seeds
    "random": (0.448, 0.480, 0.516, 0.522),
    "coreset": (0.431, 0.484, 0.496, 0.519),
    "deal": (0.389, 0.476, 0.496, 0.517),
    "alges-img": (0.419, 0.498, 0.526, 0.537),
    "alges-sem": (0.458, 0.522, 0.531, 0.532),
}


@dataclass(frozen=True)
class Table:
    """Cells of text under a header; the first column names the row."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.header, ("---", *("---:" for _ in self.header[1:])), *self.rows]
        return (
            "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"
        )


def dice_by_images(run: RunFolder, findings: Findings) -> Table:
    """Dice, mean ± sd over seeds, by strategy and number of labelled images, after the area under the curve."""
    curves = learning_curves(run.rows)
    points = sorted({n for curve in curves.values() for n in curve})
    seeds = {name: {row["seed"] for row in run.rows if row["strategy"] == name} for name in curves}
    rows = []
    for name, curve in curves.items():
        area = spread(findings.areas.get(name, {}).values())
        whole = len(seeds[name])
        cells = [mean_sd(curve[n], of=whole) if n in curve else "" for n in points]
        rows.append((name, str(whole), mean_sd(area, of=whole) if area.n else "", *cells))
    return Table(("strategy", "seeds", "AULC", *map(str, points)), tuple(rows))


def final_metrics(run: RunFolder, at: int) -> Table:
    """All metrics at one number of labelled images, beside the strategy `full` if it was run."""
    metrics = ("dice", "dice_image", "dice_released", "iou")
    rows = []
    for name in run.strategies:
        chosen = [r for r in run.rows if r["strategy"] == name and (r["n_labelled"] == at or name == "full")]
        cells = [mean_sd(spread(row.get(metric, math.nan) for row in chosen)) for metric in metrics]
        rows.append((name, str(chosen[0]["n_labelled"]), *cells))
    return Table(("strategy", "images", "Dice", "per image", "as released", "IoU"), tuple(rows))


def beside_the_paper(run: RunFolder) -> Table | None:
    """Table 1 of the paper beside ours at the same numbers of labelled images; None for another data set.

    Synthetic video in CholecSeg8k's layout is another data set; its loader says so in a note.
    """
    if run.dataset is None or run.dataset.name != "cholecseg8k" or SYNTHETIC_NOTE in run.dataset.notes:
        return None
    curves = learning_curves(run.curve_rows)
    rows = []
    for name, paper in PAPER_TABLE_1.items():
        ours = curves.get(name, {})
        cells = [mean_sd(ours[n]) if n in ours else "" for n in PAPER_POINTS]
        rows.append((name, *(cell for pair in zip(map(dice, paper), cells, strict=True) for cell in pair)))
    header = [f"{n}, {whose}" for n in PAPER_POINTS for whose in ("paper", "ours")]
    return Table(("strategy", *header), tuple(rows))


def label_savings(saved: CurveSavings) -> Table:
    """Savings with 95 % intervals by strategy and number of labelled frames, the largest half way first."""
    points = sorted({n for by_point in saved.values() for n in by_point})
    ordered = sorted(saved.items(), key=lambda item: -item[1][at_half(item[1])].factor)
    rows = [(name, *(factor(found[n]) if n in found else "" for n in points)) for name, found in ordered]
    return Table(("chosen by", *map(str, points)), tuple(rows))


def to_full(shares: Mapping[Measure, Mapping[str, Factor]]) -> Table:
    """What each strategy takes of what full supervision takes, in each measure, the least in the first on top."""
    first = next(iter(shares.values()))
    names = sorted(first, key=lambda name: (first[name].bound == ">", first[name].factor))
    rows = [(name, *(percent(of[name]) if name in of else "–" for of in shares.values())) for name in names]
    return Table(("chosen by", *(f"of its {measure.name}" for measure in shares)), tuple(rows))


def rare_classes(run: RunFolder, at: int) -> Table | None:
    """Dice of the rarest classes at one number of labelled images; None where the classes' shares are not known.

    Rare is a class with less than half of an equal share of the pool's pixels; the five rarest are shown, with their
    shares. Classes that the test set lacks are left out.
    """
    if run.dataset is None:
        return None
    shares = dict(zip(run.dataset.classes, run.dataset.shares["train"], strict=True))
    rows = [row for row in run.curve_rows if row["n_labelled"] == at]
    known = [name for name in run.class_columns if any(not math.isnan(row[f"dice_{name}"]) for row in rows)]
    rare = sorted((name for name in known if shares.get(name, 1.0) < 0.5 / len(shares)), key=shares.__getitem__)[:5]
    if not rare:
        return None
    cells = []
    for name in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == name]
        of_class = [spread(row[f"dice_{each}"] for row in own) for each in rare]
        mean = spread(math.fsum(row[f"dice_{each}"] for each in rare) / len(rare) for row in own)
        cells.append((name, mean_sd(mean), *map(mean_sd, of_class)))
    return Table(("strategy", "their mean", *(f"{name} ({shares[name]:.2g} of pixels)" for name in rare)), tuple(cells))


def pairs(comparisons: Sequence[Comparison]) -> Table:
    """All paired comparisons, those most sure to differ first."""
    ordered = sorted(comparisons, key=lambda c: (c.p_holm, c.p))
    return Table(
        ("pair", "seeds", "difference", "95 % interval", "p", "p (Holm)", "separates"),
        tuple(
            (
                f"{c.first} − {c.second}",
                str(c.n),
                signed(c.difference),
                f"{signed(c.low)} to {signed(c.high)}",
                p_value(c.p),
                p_value(c.p_holm),
                "yes" if c.separates else "no",
            )
            for c in ordered
        ),
    )


def settings(values: Mapping[str, Any]) -> Table:
    """Nested settings as dotted names and values."""
    return Table(("name", "value"), tuple(_flat(values)))


def common_point(rows: Sequence[Row]) -> int:
    """The largest number of labelled images that every strategy of the rows has reached."""
    reached: dict[str, set[int]] = {}
    for row in rows:
        reached.setdefault(row["strategy"], set()).add(row["n_labelled"])
    return max(set.intersection(*reached.values()))


def mean_sd(found: Spread, *, of: int | None = None) -> str:
    """ "0.448 ± 0.012", without ± for one seed; " (n = 2)" after it where not all `of` seeds are in."""
    if not found.n or math.isnan(found.mean):
        return "–"
    text = dice(found.mean) + (f" ± {dice(found.sd)}" if found.n > 1 else "")
    return text + (f" (n = {found.n})" if of is not None and found.n != of else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            flat.append((f"{prefix}{name}", ", ".join(map(str, value))))
        else:
            flat.append((f"{prefix}{name}", "" if value is None else str(value)))
    return flat
