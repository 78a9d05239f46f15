"""The sections of a report: what is said, tabled and drawn, in the order of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from alges_fast.report import figures, tables
from alges_fast.report.findings import Family, Findings, at_half, verdict
from alges_fast.report.run_folder import RunFolder
from alges_fast.report.saving import FULL_PART, Saving, measures_of, of_a_frame
from alges_fast.report.style import Theme, in_order, parts, strategy_styles

MOST_SHOWN = 14  # more curves than this, and pictures name the baselines and the highest alone
MOST_ROWS = 24  # and those with a row for each strategy have the highest


@dataclass(frozen=True)
class Picture:
    """A figure of the report: `name`.png, what it shows, and whether it is a photograph or a chart."""

    name: str
    alt: str
    draw: Callable[[Theme], Figure]
    photograph: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page, or of another part, which the reader opens."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: tables.Table | None = None
    folds: Sequence[Section] = ()
    notes: Sequence[str] = ()

    def parts(self) -> list[Section]:
        """The section itself, then what folds."""
        return [self, *self.folds]


def sections_of(run: RunFolder, findings: Findings) -> list[Section]:
    """All of a run's, the one that says how it was run last. What a section cannot be made of, that one names."""
    shown = _shown(run, findings)
    styles = strategy_styles(run.strategies)
    made = {
        "a learning curve": _curves(run, shown, styles) if run.curve_rows else [],
        "savings": _savings(run, findings, styles),
        "Dice": [_dice(run, findings)],
        "two strategies to compare": _differences(run, findings, styles),
        "Dice per class": _classes(run, shown) if run.class_columns and run.curve_rows else [],
        "test frames": _frames(run, shown),
        "picks": _picks(run, shown),
        "timings": _time(run, shown) if run.curve_rows and "train_seconds" in run.rows[0] else [],
        "a description of the data": _data(run),
    }
    absent = [what for what, sections in made.items() if not sections and what != "savings"]
    text = f"The folder has none of: {', '.join(absent)}." if absent else ""
    held = {"Configuration": run.config, "Environment": run.environment}
    settings = [Section(title, table=tables.settings(values)) for title, values in held.items() if values]
    return [*(section for of in made.values() for section in of), Section("How it was run", text, folds=settings)]


def _curves(run: RunFolder, shown: Sequence[str], styles: Mapping[str, Any]) -> list[Section]:
    names = in_order(row["strategy"] for row in run.curve_rows)
    axes = axes_of(run)
    faint = [name for name in names if name not in shown]
    pictures = [
        Picture(
            f"learning_curves{f'_{axis.column}' if i else ''}",
            f"Test Dice over {axis.label} for {', '.join(shown)}",
            partial(figures.curves, run.curve_rows, run.full_rows, styles, axis=axis, faint=faint),
        )
        for i, axis in enumerate(axes)
    ]
    text = [f"Mean test Dice over {len(run.seeds)} seeds." if len(run.seeds) > 1 else "Test Dice of one seed."]
    if run.full_rows:
        text.append(f'"full" is full supervision, all {run.full_rows[0]["n_labelled"]} images.')
    if len({row["n_labelled"] for row in run.curve_rows}) == 1:
        text.append("One training each, so there is no curve yet; bars are 95 % t-intervals.")
        return [Section("Learning curves", " ".join(text), pictures[:1])]
    if run.windows:
        text.append("Amounts are in average whole frames. A name with @ chose windows of that grid.")
    if faint:
        text.append(f"Of {len(names)} curves, the baselines and the highest are named.")
    apart = Picture(
        "learning_curves_by_strategy",
        "The same curves, one panel per strategy, with every seed and the 95 % band",
        partial(
            figures.curves_apart,
            [row for row in run.curve_rows if row["strategy"] in shown],
            run.full_rows,
            styles,
            axis=axes[0],
        ),
    )
    if len(names) > 1:
        text.append(
            f"Below, each beside {shown[0]} in grey, with its seeds and the mean's 95 % t-interval; seeds share their "
            "first images, so the test is the paired differences, not whether bands overlap."
        )
    return [Section("Learning curves", " ".join(text), [*pictures, *([apart] if len(names) > 1 else [])])]


def axes_of(run: RunFolder) -> list[figures.Axis]:
    """What curves are drawn over: images; or, with windows, every measure that has an axis."""
    if not run.windows:
        return [figures.images_axis(run.pool_size)]
    first = [row for row in run.curve_rows if row["round"] == 0]  # whole frames, whatever is chosen later
    measures = [measure for measure in measures_of(run.curve_rows, windows=True) if measure.axis]
    return [figures.Axis(m.column, m.axis, m.unit or of_a_frame(first, m.column), log=m.log) for m in measures]


def _shown(run: RunFolder, findings: Findings) -> list[str]:
    """The strategies that pictures tell apart: all, or where they are many the baselines and those that lie highest."""
    names = in_order(row["strategy"] for row in run.curve_rows)
    if len(names) <= MOST_SHOWN:
        return names
    lie = {c.first: c.difference for c in findings.leading[0].comparisons} if findings.leading else {}
    baselines = [name for name in names if parts(name)[0] in ("random", "stratified-random")]
    others = sorted((name for name in names if name not in baselines), key=lambda name: -lie.get(name, -math.inf))
    return in_order([*baselines, *others[: max(MOST_SHOWN - len(baselines), 4)]])


def _savings(run: RunFolder, findings: Findings, styles: Mapping[str, Any]) -> list[Section]:
    """Against random frames, and beside it what 95 % of full supervision takes; none where neither was run."""
    sections = []
    if findings.savings:
        measure = findings.measure if findings.measure in findings.savings else next(iter(findings.savings))
        saved = findings.savings[measure]
        at = at_half(next(iter(saved.values())))
        highest = sorted((name for name in saved if at in saved[name]), key=lambda name: -saved[name][at].factor)
        drawn: dict[str, Saving] = {name: saved[name][at] for name in highest[:MOST_ROWS]}
        what = f"{measure.name} (after {at} frames' worth of pixels)"
        picture = Picture(
            "label_saving",
            f"How many times as much {what} random frames need for the same Dice, by strategy",
            partial(figures.label_savings, drawn, styles, baseline="random frames", what=what),
        )
        text = (
            f"How many times as much {measure.name} random frames need for the mean Dice that a strategy has reached "
            "with so many frames' worth of pixels (columns), read off their mean curve; beyond it a bound (>, <). "
            "Intervals are 95 %, from resampling seeds."
        )
        others = {f"In {m.name}": of for m, of in findings.savings.items() if m != measure}
        if findings.savings_to_windows:
            others = {"Against random windows of the same grid": findings.savings_to_windows, **others}
        folds = [Section(title, table=tables.label_savings(of)) for title, of in others.items()]
        sections.append(Section("Label saving", text, [picture], tables.label_savings(saved), folds))
    if findings.to_full:
        part = f"{100 * FULL_PART:.0f} %"
        text = (
            f"What a strategy takes until its mean curve first reaches {part} of the Dice that the same network has "
            "with every frame labelled, as a part of what that took; > where its curve ends before."
        )
        sections.append(Section(f"To {part} of full supervision", text, table=tables.to_full(findings.to_full)))
    return sections


def _dice(run: RunFolder, findings: Findings) -> Section:
    at = tables.common_point(run.curve_rows) if run.curve_rows else run.full_rows[0]["n_labelled"]
    folds = [Section(f"All metrics with {at} labelled images", table=tables.final_metrics(run, at))]
    if paper := tables.beside_the_paper(run):
        other = f"; its pool had {tables.PAPER_POOL} images and this has {run.pool_size}, so this is other data"
        note = f"Table 1 of Aklilu & Yeung (2022){other if run.pool_size != tables.PAPER_POOL else ''}"
        folds.append(Section(f"Beside the paper: {note}", table=paper))
    text = "Mean test Dice ± standard deviation over seeds. AULC is the mean Dice over the curve."
    if run.windows:
        text += " Columns are frames, or as many frames' pixels in windows."
    return Section("Dice by labelled images", text, table=tables.dice_by_images(run, findings), folds=folds)


def _differences(run: RunFolder, findings: Findings, styles: Mapping[str, Any]) -> list[Section]:
    if not findings.leading:
        return []

    def forest(family: Family) -> Picture:
        ending = "_at_equal" if family in findings.at_equal else ""
        what = f"mean Dice over {family.over}"
        return Picture(
            f"paired_differences_to_{family.baseline.replace(' ', '_')}{ending}",
            f"Difference of every strategy to {family.baseline} in {what}, with 95 % intervals",
            partial(
                figures.forest,
                sorted(family.comparisons, key=lambda c: -c.difference)[:MOST_ROWS],
                styles,
                resolvable=family.resolvable,
                baseline=family.baseline,
                what=what,
            ),
        )

    families = [*findings.at_equal, *findings.to_baselines]
    at_equal, over_curve = ([*map(forest, of)] for of in (findings.at_equal, findings.to_baselines))
    text = (
        "Seed by seed. Lines are 95 % t-intervals, not corrected for their number; a dot is filled where p, corrected "
        "by Holm's method over its figure or table, is below 5 %. In the grey range lie true differences that these "
        "seeds would find less than four times in five."
    )
    folds = [Section("Over equal pixels", pictures=over_curve)] if at_equal else []
    folds += [
        Section(f"All minus {each.baseline}: mean Dice over {each.over}", table=tables.pairs(each.comparisons))
        for each in families
    ]
    folds += [Section("All pairs", table=tables.pairs(findings.pairs))] if findings.pairs else []
    notes = [verdict(family) for family in families]
    return [Section("Paired differences", text, at_equal or over_curve, folds=folds, notes=notes)]


def _classes(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    at = tables.common_point(run.curve_rows)
    rows = [row for row in run.curve_rows if row["n_labelled"] == at]
    names = [name for name in in_order(row["strategy"] for row in rows) if name in shown]
    alt = f"Mean Dice of every class for every strategy with {at} labelled images"
    picture = Picture("class_dice", alt, partial(figures.class_dice, rows, run.class_columns, names))
    text = f"Mean over seeds with {at} labelled images; a dash: the class does not occur in the test set's truth."
    rare = tables.rare_classes(run, at)
    return [Section("Dice per class", text, [picture], folds=[Section("Rare classes", table=rare)] if rare else [])]


def _frames(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    order = in_order(frames.strategy for frames in run.frames)
    folds = []
    for frames in [each for name in order for each in run.frames if each.strategy == name and name in shown]:
        title = f"{frames.strategy}, seed {frames.seed}, round {frames.round}"
        name = f"frames_{frames.strategy}-seed{frames.seed}-round{frames.round:02d}"
        alt = f"Image, truth, prediction and gradient norm of test frames: {title}"
        folds.append(
            Section(title, pictures=[Picture(name, alt, partial(figures.frame_maps, frames, run.dataset), True)])
        )
    text = "Test frames, their truth, the prediction, and each pixel's gradient norm, which the selection adds up."
    return [Section("What the model sees", text, folds=folds)] if folds else []


def _picks(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    folds = []
    for name in [name for name in in_order(record.strategy for record in run.picks) if name in shown]:
        mine = [record for record in run.picks if record.strategy == name and record.ids]
        mine = [record for record in mine if record.seed == mine[0].seed]
        draw = partial(figures.contact_sheet, mine, run.thumbnails, size=run.config.get("image_size"))
        alt = f"Thumbnails of the images that {name} picked, a line per round"
        if mine:
            folds.append(Section(f"{name}, seed {mine[0].seed}", pictures=[Picture(f"picks_{name}", alt, draw, True)]))
    text = (
        f"In order of picking, a line per round: at most {figures.ROUNDS_SHOWN} rounds, evenly spread, and "
        f"{figures.PICKS_SHOWN} picks of each. Picked windows are bright and framed."
    )
    return [Section("What each strategy picked", text, folds=folds)] if folds and run.thumbnails else []


def _time(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    names = [name for name in in_order(row["strategy"] for row in run.curve_rows) if name in shown]
    alt = "Mean seconds per round of training, embedding, seeding and evaluation for every strategy"
    picture = Picture("seconds_per_round", alt, partial(figures.round_seconds, run.curve_rows, names))
    return [Section("Time per round", "Mean over rounds and seeds, choosing over the rounds that chose.", [picture])]


def _data(run: RunFolder) -> list[Section]:
    if run.dataset is None:
        return []
    alt = "Share of pixels of every class in the training, validation and test splits"
    picture = Picture("class_shares", alt, partial(figures.class_shares, run.dataset))
    sizes = ", ".join(f"{split} {count}" for split, count in run.dataset.frames.items())
    rest = {split: 1 - sum(shares) for split, shares in run.dataset.shares.items() if run.dataset.frames[split]}
    text = f"{run.dataset.name}: {len(run.dataset.classes)} classes; frames: {sizes}. Shares are of all pixels"
    if any(share > 1e-9 for share in rest.values()):
        text += "; not labelled: " + ", ".join(f"{split} {100 * share:.1f} %" for split, share in rest.items())
    return [Section("Data", f"{text}. Note the logarithmic axis.", [picture], notes=run.dataset.notes)]
