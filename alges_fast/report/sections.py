"""The sections of a report: their sentences, tables and pictures, in the order of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from matplotlib.figure import Figure

from alges_fast.report import figures, tables
from alges_fast.report.artefacts import PickRecord
from alges_fast.report.findings import Family, Findings, at_half, of_pixels
from alges_fast.report.run_folder import RunFolder
from alges_fast.report.saving import FRAMES, OUTLINE, PIXELS
from alges_fast.report.style import Theme, in_order, parts, strategy_styles
from alges_fast.report.text import count

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
class Fold:
    """Part of a section that the reader opens."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: tables.Table | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page; one without content says in its text why."""

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    table: tables.Table | None = None
    folds: Sequence[Fold] = field(default_factory=tuple)
    notes: Sequence[str] = ()

    def parts(self) -> list[Section | Fold]:
        """The section itself, then what folds."""
        return [self, *self.folds]


def sections_of(run: RunFolder, findings: Findings) -> list[Section]:
    """All of a run's, the one that says how it was run last."""
    shown = _shown(run, findings)
    sections = [_curves(run, shown)]
    savings = _savings(run, findings)
    both = [*([savings] if savings else []), _dice_table(run, findings)]
    sections += both if run.windows else both[::-1]
    paper = tables.beside_the_paper(run)
    if paper:
        sections.append(Section("Beside the paper", _about_the_paper(run), table=paper))
    sections += [
        _differences(run, findings),
        _classes(run, shown),
        _frames(run, shown),
        _picks(run, shown),
        _time(run, shown),
        _data(run),
        _settings(run),
    ]
    return sections


def _curves(run: RunFolder, shown: Sequence[str]) -> Section:
    title = "Learning curves"
    if not run.curve_rows:
        return Section(title, "No strategy with a learning curve has finished a training.")
    styles = strategy_styles(run.strategies)
    axes = _axes(run)
    names = in_order(row["strategy"] for row in run.curve_rows)
    faint = [name for name in names if name not in shown]
    pictures = [
        Picture(
            name,
            f"Test Dice over {axis.label} for {', '.join(shown)}",
            partial(figures.curves, run.curve_rows, run.full_rows, styles, axis=axis, faint=faint),
        )
        for name, axis in axes.items()
    ]
    of_shown = [row for row in run.curve_rows if row["strategy"] in shown]
    trainings = len({row["n_labelled"] for row in run.curve_rows})
    seeds = len({row["seed"] for row in run.curve_rows})
    bars = "bars are the means' 95 % t-intervals" if seeds > 1 else "one seed gives no interval"
    text = f"Mean test Dice over {count(seeds, 'seed')}." if seeds > 1 else "Test Dice of one seed, so without a band."
    if run.full_rows:
        text += f' "full" is a model trained on all {run.full_rows[0]["n_labelled"]} images.'
    if trainings == 1:
        return Section(title, f"{text} One training each, so there is no curve yet; {bars}.", pictures[:1])
    if run.windows:
        text += (
            " First over the outline drawn, which is what an annotator's time goes into; then over the pixels labelled "
            "and the frames opened. All three are counted in frames: 10 is as much as 10 average frames labelled whole."
            " A name with @ chose windows of that grid, the others whole frames (dotted)."
        )
    if faint:
        text += f" Of {len(names)} curves, the baselines and the highest are named and the others are thin grey lines."
    if seeds > 1 and len(names) <= figures.BANDS_TOGETHER:
        text += " Bands are the means' 95 % t-intervals."
    if len(names) == 1:
        return Section(title, text, pictures)
    apart = Picture(
        "learning_curves_by_strategy",
        "The same curves, one panel per strategy, with every seed and the 95 % band",
        partial(figures.curves_apart, of_shown, run.full_rows, styles, axis=next(iter(axes.values()))),
    )
    text += f" Below, each strategy alone, with {shown[0]} in grey"
    if seeds > 1:
        text += (
            ", its seeds as thin lines and its mean with the 95 % t-interval. Seeds share their first images across "
            "strategies, so overlapping bands do not mean that strategies are equal: the paired differences further "
            "down are the test"
        )
    text += "."
    return Section(title, text, [*pictures, apart])


def _axes(run: RunFolder) -> dict[str, figures.Axis]:
    """What curves are drawn over, by the picture's name: images; or, with windows, the three measures of effort."""
    if not run.windows:
        return {"learning_curves": figures.images_axis(run.pool_size)}
    first = [row for row in run.curve_rows if row["round"] == 0]  # whole frames, whatever is chosen later
    frames = sum(row["n_frames"] for row in first)
    of_one = {column: sum(row[column] for row in first) / frames for column in (OUTLINE.column, PIXELS.column)}
    return {
        "learning_curves": figures.Axis(OUTLINE.column, "outline drawn, in average whole frames", of_one["outline"]),
        "learning_curves_pixels": figures.Axis(
            PIXELS.column, "pixels labelled, in whole frames", of_one["labelled_share"]
        ),
        "learning_curves_frames": figures.Axis(FRAMES.column, "frames opened", log=True),
    }


def _shown(run: RunFolder, findings: Findings) -> list[str]:
    """The strategies that pictures tell apart: all, or where they are many the baselines and those that lie highest."""
    names = in_order(row["strategy"] for row in run.curve_rows)
    if len(names) <= MOST_SHOWN:
        return names
    families = findings.at_equal_outline or findings.to_baselines
    lie = {c.first: c.difference for c in families[0].comparisons} if families else {}
    baselines = [name for name in names if parts(name)[0] in ("random", "stratified-random")]
    others = sorted((name for name in names if name not in baselines), key=lambda name: -lie.get(name, -math.inf))
    return in_order([*baselines, *others[: max(MOST_SHOWN - len(baselines), 4)]])


def _savings(run: RunFolder, findings: Findings) -> Section | None:
    """None where there is nothing random frames could be compared with."""
    if not findings.savings:
        return None
    main = OUTLINE if run.windows and OUTLINE in findings.savings else PIXELS
    if main not in findings.savings:
        main = next(iter(findings.savings))
    at = at_half(next(iter(findings.savings[main].values())))
    counted = "frames' worth of pixels" if run.windows else "frames"
    highest = sorted(findings.savings[main].items(), key=lambda item: -item[1][at_half(item[1])].factor)
    picture = Picture(
        "label_saving",
        f"How many times as much {main.name} random frames need for the same Dice, by strategy, after {at} {counted}",
        partial(
            figures.label_savings,
            {name: saved[at] for name, saved in highest[:MOST_ROWS] if at in saved},
            strategy_styles(run.strategies),
            baseline="random frames",
            what=f"{main.name} (after {at} {counted})",
        ),
    )
    text = (
        f"How many times as much {main.name} random frames need for the mean Dice that a strategy has reached; "
        "2 says that the strategy gets there with half of it. Where random frames first reach that Dice is read off "
        "their own mean curve, straight between its trainings; a Dice beyond the curve gives a bound (>, <), never an "
        "extrapolation. Intervals are 95 %, from resampling the seeds that both have. The columns are numbers of "
        f"{counted}."
    )
    if len(highest) > MOST_ROWS:
        text += f" The picture has the highest {MOST_ROWS} of {len(highest)}."
    folds = [
        Fold(f"In {measure.name}", table=tables.label_savings(saved))
        for measure, saved in findings.savings.items()
        if measure != main and (run.windows or measure != PIXELS)
    ]
    if findings.savings_to_windows:
        folds.insert(
            0,
            Fold(
                "In outline drawn, against random windows of the same grid",
                table=tables.label_savings(findings.savings_to_windows),
            ),
        )
    return Section("Label saving", text, [picture], table=tables.label_savings(findings.savings[main]), folds=folds)


def _dice_table(run: RunFolder, findings: Findings) -> Section:
    text = (
        "Mean test Dice ± standard deviation over seeds. AULC is the area under the learning curve over its width, "
        "that is, the mean Dice over the curve."
    )
    at = tables.common_point(run.curve_rows) if run.curve_rows else run.full_rows[0]["n_labelled"]
    metrics = Fold(f"All metrics with {at} labelled images", table=tables.final_metrics(run, at))
    title = "Dice by labelled images"
    if run.windows:
        title = "Dice by labelled pixels"
        text += " Columns are whole frames, or as many frames' pixels in windows."
    return Section(title, text, table=tables.dice_by_images(run, findings), folds=[metrics])


def _about_the_paper(run: RunFolder) -> str:
    text = (
        "Table 1 of Aklilu & Yeung (2022), mean test Dice over three seeds, beside this run at the same numbers of "
        "labelled images. The paper's split is reconstructed, not confirmed."
    )
    if run.pool_size not in (None, tables.PAPER_POOL):
        text += (
            f" The pool of this run has {run.pool_size} images and the paper's {tables.PAPER_POOL}, so this is other "
            "data: the numbers do not compare."
        )
    return text


def _differences(run: RunFolder, findings: Findings) -> Section:
    title = "Paired differences"
    if not findings.to_baselines:
        return Section(title, "There are no two strategies with two finished seeds in common to compare.")
    over_pixels = "mean Dice over equal pixels" if run.windows else "area under the curve (Dice)"
    by_outline = _forests(run, findings.at_equal_outline, "mean Dice over equal outline", "_in_outline")
    by_pixels = _forests(run, findings.to_baselines, over_pixels, "")
    baselines = " and of ".join(family.baseline for family in findings.to_baselines)
    compared = (
        "Mean Dice over the outline that both have drawn, and below over equal pixels,"
        if by_outline
        else "Area under the learning curve"
    )
    text = (
        f"{compared} minus that of {baselines}, seed by seed. Lines are 95 % t-intervals, not "
        "corrected for their number; p is corrected by Holm's method, over the comparisons of one figure or table, and "
        "a dot is filled where it is below 5 %. In the grey range lie true differences that these seeds would find "
        "less than four times in five."
    )
    folds = [Fold("All pairs", table=tables.pairs(findings.pairs))] if findings.pairs else []
    for families, what in ((findings.to_baselines, over_pixels), (findings.at_equal_outline, "mean Dice over outline")):
        folds += [
            Fold(
                f"All {len(family.comparisons)} minus {family.baseline}: {what}", table=tables.pairs(family.comparisons)
            )
            for family in families
            if len(family.comparisons) > MOST_ROWS
        ]
    if any(len(family.comparisons) > MOST_ROWS for family in findings.to_baselines):
        text += f" A picture has the highest {MOST_ROWS}; the tables below have all."
    if by_outline:
        folds.insert(0, Fold("Over equal pixels", pictures=by_pixels))
    return Section(title, text, by_outline or by_pixels, folds=folds, notes=of_pixels(findings))


def _forests(run: RunFolder, families: Sequence[Family], what: str, suffix: str) -> list[Picture]:
    return [
        Picture(
            f"paired_differences_to_{family.baseline.replace(' ', '_')}{suffix}",
            f"Difference of every strategy to {family.baseline} in {what}, with 95 % intervals",
            partial(
                figures.forest,
                sorted(family.comparisons, key=lambda c: -c.difference)[:MOST_ROWS],
                strategy_styles(run.strategies),
                resolvable=family.resolvable,
                baseline=family.baseline,
                what=what,
            ),
        )
        for family in families
    ]


def _classes(run: RunFolder, shown: Sequence[str]) -> Section:
    title = "Dice per class"
    classes = run.class_columns
    if not classes or not run.curve_rows:
        return Section(title, "results.csv has no Dice per class.")
    at = tables.common_point(run.curve_rows)
    rows = [row for row in run.curve_rows if row["n_labelled"] == at]
    names = [name for name in in_order(row["strategy"] for row in rows) if name in shown]
    picture = Picture(
        "class_dice",
        f"Mean Dice of every class for every strategy with {at} labelled images",
        partial(figures.class_dice, rows, classes, names),
    )
    text = (
        f"Mean over seeds with {at} labelled images. A dash: the class does not occur in the test set's ground truth."
    )
    rare = tables.rare_classes(run, at)
    return Section(title, text, [picture], folds=[Fold("Rare classes", table=rare)] if rare else [])


def _frames(run: RunFolder, shown: Sequence[str]) -> Section:
    title = "What the model sees"
    if not run.frames:
        return Section(title, "The run stored no test frames (report_data/frames).")
    place = {name: i for i, name in enumerate(in_order(frames.strategy for frames in run.frames))}
    kept = sorted(
        (frames for frames in run.frames if frames.strategy in shown),
        key=lambda frames: (place[frames.strategy], frames.seed, frames.round),
    )
    pictures = [
        Picture(
            f"frames_{frames.strategy}-seed{frames.seed}-round{frames.round:02d}",
            f"Image, truth, prediction and gradient norm of test frames: {frames.strategy}, round {frames.round}",
            partial(figures.frame_maps, frames, run.dataset),
            photograph=True,
        )
        for frames in kept
    ]
    text = (
        "Test frames, their ground truth, the prediction, and the size of each pixel's gradient embedding, which the "
        "selection adds up: bright where the model is unsure or its features are large."
    )
    folds = [
        Fold(f"{frames.strategy}, seed {frames.seed}, round {frames.round}", pictures=[picture])
        for frames, picture in zip(kept, pictures, strict=True)
    ]
    return Section(title, text, folds=folds)


def _picks(run: RunFolder, shown: Sequence[str]) -> Section:
    title = "What each strategy picked"
    chosen: dict[str, list[PickRecord]] = {}
    for record in run.picks:
        mine = chosen.setdefault(record.strategy, [])
        if record.ids and (not mine or record.seed == mine[0].seed):
            mine.append(record)
    chosen = {name: chosen[name] for name in in_order(chosen) if chosen[name] and name in shown}
    size = run.config.get("image_size")
    if not chosen or not run.thumbnails:
        why = "no thumbnails of its picks" if chosen else "no picks"
        return Section(title, f"The run has stored {why}; it does when it is finished (report_data/thumbnails.npz).")
    folds = [
        Fold(
            f"{name}, seed {records[0].seed}",
            pictures=[
                Picture(
                    f"picks_{name}",
                    f"Thumbnails of the images that {name} picked, a line per round",
                    partial(figures.contact_sheet, records, run.thumbnails, size=size),
                    photograph=True,
                )
            ],
        )
        for name, records in chosen.items()
    ]
    most = max(len(record.ids) for records in chosen.values() for record in records)
    text = "In order of picking, a line per round."
    if run.windows:
        text += " Of a frame of which a window was picked, the window is bright and framed."
    if most > figures.PICKS_SHOWN:
        text += f" The first {figures.PICKS_SHOWN} of up to {most} are shown."
    if max(map(len, chosen.values())) > figures.ROUNDS_SHOWN:
        text += f" At most {figures.ROUNDS_SHOWN} rounds are shown, evenly spread."
    return Section(title, text, folds=folds)


def _time(run: RunFolder, shown: Sequence[str]) -> Section:
    title = "Time per round"
    if not run.curve_rows or "train_seconds" not in run.rows[0]:
        return Section(title, "results.csv has no timings.")
    names = [name for name in in_order(row["strategy"] for row in run.curve_rows) if name in shown]
    picture = Picture(
        "seconds_per_round",
        "Mean seconds per round of training, embedding, seeding and evaluation for every strategy",
        partial(figures.round_seconds, run.curve_rows, names),
    )
    text = "Mean over rounds and seeds, choosing over the rounds that chose, on the machine described below."
    return Section(title, text, [picture])


def _data(run: RunFolder) -> Section:
    title = "Data"
    if run.dataset is None:
        return Section(title, "The run stored no description of its data (report_data/dataset.json).")
    dataset = run.dataset
    picture = Picture(
        "class_shares",
        "Share of pixels of every class in the training, validation and test splits",
        partial(figures.class_shares, dataset),
    )
    sizes = ", ".join(f"{split} {count}" for split, count in dataset.frames.items())
    text = f"{dataset.name}: {len(dataset.classes)} classes; frames: {sizes}. Shares are of all pixels"
    unlabelled = {split: 1 - sum(shares) for split, shares in dataset.shares.items() if dataset.frames[split]}
    if any(share > 1e-9 for share in unlabelled.values()):
        text += "; not labelled: " + ", ".join(f"{split} {100 * share:.1f} %" for split, share in unlabelled.items())
    return Section(title, f"{text}. Note the logarithmic axis.", [picture], notes=dataset.notes)


def _settings(run: RunFolder) -> Section:
    held = {"Configuration": run.config, "Environment": run.environment}
    folds = [Fold(title, table=tables.settings(values)) for title, values in held.items() if values]
    return Section(
        "How it was run", "" if folds else "The folder has no config.yaml and no environment.json.", folds=folds
    )
