"""The sections of a report: what is tabled and drawn, in the order of the page; what they say is in words.jinja."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from alges_fast.report import figures, tables
from alges_fast.report.findings import Family, Findings, at_half
from alges_fast.report.run_folder import RunFolder
from alges_fast.report.saving import FULL_PART, Saving, measures_of, of_a_frame
from alges_fast.report.style import Theme, in_order, parts, strategy_styles
from alges_fast.report.text import whole_percent, words

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
    held = {"Configuration": run.config, "Environment": run.environment}
    settings = [Section(title, table=tables.settings(values)) for title, values in held.items() if values]
    return [
        *(section for of in made.values() for section in of),
        Section("How it was run", words("absent", parts=absent), folds=settings),
    ]


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
    n_trainings = len({row["n_labelled"] for row in run.curve_rows})
    text = words("curves", run=run, names=names, shown=shown, n_trainings=n_trainings)
    if n_trainings == 1 or len(names) == 1:
        return [Section("Learning curves", text, pictures[:1] if n_trainings == 1 else pictures)]
    own = [row for row in run.curve_rows if row["strategy"] in shown]
    apart = Picture(
        "learning_curves_by_strategy",
        "The same curves, one panel per strategy, with every seed and the 95 % band",
        partial(figures.curves_apart, own, run.full_rows, styles, axis=axes[0]),
    )
    return [Section("Learning curves", text, [*pictures, apart])]


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
        others = {f"In {m.name}": of for m, of in findings.savings.items() if m != measure}
        if findings.savings_to_windows:
            others = {"Against random windows of the same grid": findings.savings_to_windows, **others}
        folds = [Section(title, table=tables.label_savings(of)) for title, of in others.items()]
        sections.append(
            Section("Label saving", words("savings", measure=measure), [picture], tables.label_savings(saved), folds)
        )
    if findings.to_full:
        title = f"To {whole_percent(FULL_PART)} of full supervision"
        sections.append(Section(title, words("to_full"), table=tables.to_full(findings.to_full)))
    return sections


def _dice(run: RunFolder, findings: Findings) -> Section:
    at = tables.common_point(run.curve_rows) if run.curve_rows else run.full_rows[0]["n_labelled"]
    folds = [Section(f"All metrics with {at} labelled images", table=tables.final_metrics(run, at))]
    if paper := tables.beside_the_paper(run):
        folds.append(Section(words("paper", pool=tables.PAPER_POOL, ours=run.pool_size), table=paper))
    table = tables.dice_by_images(run, findings)
    return Section("Dice by labelled images", words("dice", run=run), table=table, folds=folds)


def _differences(run: RunFolder, findings: Findings, styles: Mapping[str, Any]) -> list[Section]:
    if not findings.leading:
        return []

    def forest(family: Family) -> Picture:
        ending = "_at_equal" if family in findings.at_equal else ""
        return Picture(
            f"paired_differences_to_{family.baseline.replace(' ', '_')}{ending}",
            f"Difference of every strategy to {family.baseline} in mean Dice over {family.over}, with 95 % intervals",
            partial(figures.forest, family, styles, most=MOST_ROWS),
        )

    families = [*findings.at_equal, *findings.to_baselines]
    at_equal, over_curve = ([*map(forest, of)] for of in (findings.at_equal, findings.to_baselines))
    folds = [Section("Over equal pixels", pictures=over_curve)] if at_equal else []
    folds += [
        Section(f"All minus {each.baseline}: mean Dice over {each.over}", table=tables.pairs(each.comparisons))
        for each in families
    ]
    folds += [Section("All pairs", table=tables.pairs(findings.pairs))] if findings.pairs else []
    notes = [words("verdict", family=family) for family in families]
    return [Section("Paired differences", words("differences"), at_equal or over_curve, folds=folds, notes=notes)]


def _classes(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    at = tables.common_point(run.curve_rows)
    rows = [row for row in run.curve_rows if row["n_labelled"] == at]
    names = [name for name in in_order(row["strategy"] for row in rows) if name in shown]
    alt = f"Mean Dice of every class for every strategy with {at} labelled images"
    picture = Picture("class_dice", alt, partial(figures.class_dice, rows, run.class_columns, names))
    rare = tables.rare_classes(run, at)
    folds = [Section("Rare classes", table=rare)] if rare else []
    return [Section("Dice per class", words("classes", at=at), [picture], folds=folds)]


def _frames(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    order = in_order(frames.strategy for frames in run.frames)
    folds = []
    for frames in [each for name in order for each in run.frames if each.strategy == name and name in shown]:
        title = f"{frames.strategy}, seed {frames.seed}, round {frames.round}"
        name = f"frames_{frames.strategy}-seed{frames.seed}-round{frames.round:02d}"
        alt = f"Image, truth, prediction and gradient norm of test frames: {title}"
        picture = Picture(name, alt, partial(figures.frame_maps, frames, run.dataset), photograph=True)
        folds.append(Section(title, pictures=[picture]))
    return [Section("What the model sees", words("frames"), folds=folds)] if folds else []


def _picks(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    folds = []
    for name in [name for name in in_order(record.strategy for record in run.picks) if name in shown]:
        mine = [record for record in run.picks if record.strategy == name and record.ids]
        mine = [record for record in mine if record.seed == mine[0].seed]
        draw = partial(figures.contact_sheet, mine, run.thumbnails, size=run.config.get("image_size"))
        alt = f"Thumbnails of the images that {name} picked, a line per round"
        if mine:
            folds.append(Section(f"{name}, seed {mine[0].seed}", pictures=[Picture(f"picks_{name}", alt, draw, True)]))
    text = words("picks", rounds=figures.ROUNDS_SHOWN, picks=figures.PICKS_SHOWN)
    return [Section("What each strategy picked", text, folds=folds)] if folds and run.thumbnails else []


def _time(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    names = [name for name in in_order(row["strategy"] for row in run.curve_rows) if name in shown]
    alt = "Mean seconds per round of training, embedding, seeding and evaluation for every strategy"
    picture = Picture("seconds_per_round", alt, partial(figures.round_seconds, run.curve_rows, names))
    return [Section("Time per round", words("time"), [picture])]


def _data(run: RunFolder) -> list[Section]:
    if run.dataset is None:
        return []
    alt = "Share of pixels of every class in the training, validation and test splits"
    picture = Picture("class_shares", alt, partial(figures.class_shares, run.dataset))
    shares = run.dataset.shares.items()
    unlabelled = {split: 1 - sum(of_split) for split, of_split in shares if run.dataset.frames[split]}
    text = words("data", dataset=run.dataset, unlabelled=unlabelled)
    return [Section("Data", text, [picture], notes=run.dataset.notes)]
