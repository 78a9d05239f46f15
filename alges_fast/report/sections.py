"""The sections of a report: what is tabled and drawn, in the order of the page; what they say is in words.jinja."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from alges_fast.report import figures, tables
from alges_fast.report.artefacts import DatasetSummary
from alges_fast.report.findings import Family, Findings, at_half
from alges_fast.report.run_folder import RunFolder
from alges_fast.report.saving import FULL_PART
from alges_fast.report.style import Theme, in_order, parts, strategy_styles
from alges_fast.report.text import whole_percent, words

MOST_SHOWN = 14  # more curves than this, and pictures name the baselines and the highest alone


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


def sections_of(run: RunFolder, findings: Findings) -> list[Section]:
    """All of a run's, the one that says how it was run last. What a section cannot be made of, that one names."""
    shown = _shown(run, findings)
    styles = strategy_styles(run.strategies)
    made = {
        "a learning curve": _curves(run, shown, styles) if run.curve_rows else [],
        "savings": _savings(run, findings, styles),
        "Dice": [_dice(run, findings)],
        "two strategies to compare": _differences(findings, styles) if findings.leading else [],
        "Dice per class": _classes(run, shown) if run.class_columns and run.curve_rows else [],
        "test frames": _frames(run, shown),
        "picks": _picks(run, shown),
        "timings": _time(run, shown) if run.curve_rows and "train_seconds" in run.rows[0] else [],
        "a description of the data": _data(run.dataset) if run.dataset else [],
    }
    absent = [what for what, sections in made.items() if not sections and what != "savings"]
    held = {"Configuration": run.config, "Environment": run.environment}
    settings = [Section(title, table=tables.settings(values)) for title, values in held.items() if values]
    run_by = Section("How it was run", words("absent", parts=absent), folds=settings)
    return [*itertools.chain(*made.values()), run_by]


def _curves(run: RunFolder, shown: Sequence[str], styles: Mapping[str, Any]) -> list[Section]:
    names = in_order(row["strategy"] for row in run.curve_rows)
    axes = figures.axes_of(run)
    faint = [name for name in names if name not in shown]
    pictures = []
    for i, axis in enumerate(axes):
        name = f"learning_curves{f'_{axis.column}' if i else ''}"
        alt = f"Test Dice over {axis.label} for {', '.join(shown)}"
        draw = partial(figures.curves, run.curve_rows, run.full_rows, styles, axis=axis, faint=faint)
        pictures.append(Picture(name, alt, draw))
    n_trainings = len({row["n_labelled"] for row in run.curve_rows})
    text = words("curves", run=run, names=names, shown=shown, n_trainings=n_trainings)
    if n_trainings == 1:
        pictures = pictures[:1]
    elif len(names) > 1:
        own = [row for row in run.curve_rows if row["strategy"] in shown]
        alt = "The same curves, one panel per strategy, with every seed and the 95 % band"
        draw = partial(figures.curves_apart, own, run.full_rows, styles, axis=axes[0])
        pictures.append(Picture("learning_curves_by_strategy", alt, draw))
    return [Section("Learning curves", text, pictures)]


def _shown(run: RunFolder, findings: Findings) -> list[str]:
    """The strategies that pictures tell apart: all, or where they are many the baselines and those that lie highest."""
    names = in_order(row["strategy"] for row in run.curve_rows)
    if len(names) <= MOST_SHOWN:
        return names
    lie = {c.first: c.difference for c in findings.leading[0].comparisons} if findings.leading else {}
    baselines = [name for name in names if parts(name)[0] in ("random", "stratified-random")]
    others = sorted((name for name in names if name not in baselines), key=lambda name: -lie.get(name, -math.inf))
    kept = {*baselines, *others[: max(MOST_SHOWN - len(baselines), 4)]}
    return [name for name in names if name in kept]


def _savings(run: RunFolder, findings: Findings, styles: Mapping[str, Any]) -> list[Section]:
    """Against random frames, and beside it what 95 % of full supervision takes; none where neither was run."""
    sections = []
    if findings.savings:
        measure = findings.measure if findings.measure in findings.savings else next(iter(findings.savings))
        saved = findings.savings[measure]
        at = at_half(next(iter(saved.values())))
        drawn = {name: of[at] for name, of in saved.items() if at in of}
        what = f"{measure.name} (after {at} frames' worth of pixels)"
        alt = f"How many times as much {what} random frames need for the same Dice, by strategy"
        picture = Picture("label_saving", alt, partial(figures.label_savings, drawn, styles, what=what))
        others = {"Against random windows of the same grid": findings.savings_to_windows}
        others |= {f"In {m.name}": of for m, of in findings.savings.items() if m != measure}
        folds = [Section(title, table=tables.label_savings(of)) for title, of in others.items() if of]
        table = tables.label_savings(saved)
        sections.append(Section("Label saving", words("savings", measure=measure), [picture], table, folds))
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


def _differences(findings: Findings, styles: Mapping[str, Any]) -> list[Section]:
    def forest(family: Family) -> Picture:
        ending = "_at_equal" if family in findings.at_equal else ""
        name = f"paired_differences_to_{family.baseline.replace(' ', '_')}{ending}"
        alt = f"Difference of every strategy to {family.baseline} in mean Dice over {family.over}, with 95 % intervals"
        return Picture(name, alt, partial(figures.forest, family, styles))

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
    alt = f"Mean Dice of every class for every strategy with {at} labelled images"
    picture = Picture("class_dice", alt, partial(figures.class_dice, rows, run.class_columns, shown))
    rare = tables.rare_classes(run, at)
    folds = [Section("Rare classes", table=rare)] if rare else []
    return [Section("Dice per class", words("classes", at=at), [picture], folds=folds)]


def _frames(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    folds = []
    for frames in [each for name in shown for each in run.frames if each.strategy == name]:
        title = f"{frames.strategy}, seed {frames.seed}, round {frames.round}"
        name = f"frames_{frames.strategy}-seed{frames.seed}-round{frames.round:02d}"
        alt = f"Image, truth, prediction and gradient norm of test frames: {title}"
        picture = Picture(name, alt, partial(figures.frame_maps, frames, run.dataset), photograph=True)
        folds.append(Section(title, pictures=[picture]))
    return [Section("What the model sees", words("frames"), folds=folds)] if folds else []


def _picks(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    folds = []
    for name in shown:
        mine = [record for record in run.picks if record.strategy == name and record.ids]
        mine = [record for record in mine if record.seed == mine[0].seed]
        draw = partial(figures.contact_sheet, mine, run.thumbnails, size=run.config.get("image_size"))
        alt = f"Thumbnails of the images that {name} picked, a line per round"
        if mine:
            folds.append(Section(f"{name}, seed {mine[0].seed}", pictures=[Picture(f"picks_{name}", alt, draw, True)]))
    text = words("picks", rounds=figures.ROUNDS_SHOWN, picks=figures.PICKS_SHOWN)
    return [Section("What each strategy picked", text, folds=folds)] if folds and run.thumbnails else []


def _time(run: RunFolder, shown: Sequence[str]) -> list[Section]:
    alt = "Mean seconds per round of training, embedding, seeding and evaluation for every strategy"
    picture = Picture("seconds_per_round", alt, partial(figures.round_seconds, run.curve_rows, shown))
    return [Section("Time per round", words("time"), [picture])]


def _data(dataset: DatasetSummary) -> list[Section]:
    alt = "Share of pixels of every class in the training, validation and test splits"
    picture = Picture("class_shares", alt, partial(figures.class_shares, dataset))
    unlabelled = {split: 1 - sum(shares) for split, shares in dataset.shares.items() if dataset.frames[split]}
    text = words("data", dataset=dataset, unlabelled=unlabelled)
    return [Section("Data", text, [picture], notes=dataset.notes)]
