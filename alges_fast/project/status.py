"""What a project says of itself: in the terminal, and as a page. Enough for someone who comes back after a month."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alges_fast import atomic
from alges_fast.data.loading import palette
from alges_fast.models import FROZEN
from alges_fast.pages import render
from alges_fast.prices import sheets_for
from alges_fast.project.asking import as_flags, strategy_of
from alges_fast.project.folder import Import, Project, Round, TrainedModel
from alges_fast.project.labels import Labels, read_labels
from alges_fast.project.measuring import ENOUGH, TELLING
from alges_fast.project.near_duplicates import likeness_line
from alges_fast.project.pool import ProjectPool, list_pool
from alges_fast.project.predictions import Predictions, in_use, newest
from alges_fast.project.timing import prices_of, timing_lines
from alges_fast.strategies import Candidate

PAGE = "status.html"


@dataclass(frozen=True)
class NextStep:
    """What to do now, and why; the first alternative is the one to take."""

    why: str
    commands: Sequence[str]

    def lines(self) -> list[str]:
        """As they are printed."""
        return [f"now: {self.why}", *(f"  {command}" for command in self.commands)]


def next_step(project: Project) -> NextStep:
    """What the state of the folder asks for."""
    last = project.rounds[-1] if project.rounds else None
    begun = last is not None and last.picks is None and last.asked
    if last is None or (begun and len(project.rounds) == 1):
        return NextStep("nothing is chosen yet", [project.command("next", "-n 20")])
    again = project.command("next", as_flags(last.asked))
    if begun:
        return NextStep(f"round {last.number} was begun and is not out yet", [again])
    repeated = in_use(project)
    stale = repeated is None and project.labelled and not (project.models and project.known_to(project.models[-1]))
    more, rest = "", []
    if missing := len(project.missing):
        more, rest = f"{missing} picks have not come back yet", [project.command("import", "EXPORT")]
    if last.picks is not None and not project.answered(last):
        return NextStep(
            f"round {last.number} is out: {last.folder / 'cvat.zip'} is for CVAT, {last.folder / 'label_studio'} for "
            f"Label Studio, {last.folder / 'index.html'} to look through",
            [project.command("import", "EXPORT")],
        )
    if stale:
        why = "the labels changed since the last training"
        return NextStep(f"{why}, {more}" if more else why, [project.command("train"), *rest])
    if not project.labelled:
        return NextStep("all that went out was refused", [project.command("next", "-n 20")])
    why = "the model knows all labels" if repeated is None else "no label came in since the predictions"
    return NextStep(f"{why}; {more}" if more else why, [again, *rest, project.command("export")])


def another_round(project: Project) -> str:
    """What another round would bring to Dice, or why that cannot be told yet."""
    if not project.models:
        return "What a round brings cannot be told yet: no model is trained."
    facts = project.models[-1].facts
    n_held_out = len(facts["held_out"])
    if facts["gain"] is None:
        return (
            f"What another round would bring cannot be told yet: from {ENOUGH} annotated frames on a fifth is held out "
            f"to measure with, and there are {facts['frames']}."
        )
    difference, low, high = facts["gain"]
    if low is None:
        return (
            f"What another round would bring cannot be told yet: {n_held_out} held-out frames are too few, {TELLING} "
            "are the least."
        )
    doubling = f"Doubling the labels changed Dice by {difference:+.3f} ({low:+.3f} to {high:+.3f})"
    if low <= 0:
        return (
            f"What another round would bring cannot be told yet. {doubling} on {n_held_out} held-out frames: that may "
            "be chance."
        )
    frames = max(facts["frames"] - n_held_out, 1)
    sizes = [len(import_.frames) for import_ in project.imports if import_.round == facts["round"]]
    more = max(sum(sizes), 1)
    share = math.log2((frames + more) / frames)
    return (
        f"Another round of {more} frames would bring about {difference * share:+.3f} Dice ({low * share:+.3f} to "
        f"{high * share:+.3f}), if the curve goes on as it did: {doubling[0].lower()}{doubling[1:]} on {n_held_out} "
        "held-out frames."
    )


def label_saving(project: Project) -> str:
    """How much labelling the project's strategies saved, or why that cannot be known from it."""
    saving = project.models[-1].facts["saving"] if project.models else None
    if saving is None:
        return (
            "How much labelling the choice saved cannot be known from this project: that takes whole frames annotated "
            f"in rounds of --strategy random, {TELLING} of them held out, and {TELLING} more of them and of chosen "
            "ones to train on. python -m alges_fast.run compares strategies on labelled data."
        )
    difference, low, high = saving["difference"]
    n, frames = saving["frames"], saving["random_frames"]
    what = (
        f"{n} frames chosen by {' and '.join(saving['strategies'])} reach Dice {saving['dice']:.3f}, {n} random ones "
        f"{saving['random_dice']:.3f}: {difference:+.3f} ({low:+.3f} to {high:+.3f}) on {saving['held_out']} held-out "
        "frames that were drawn at random"
    )
    if low <= 0 <= high:
        return f"What choosing saved cannot be told yet: {what}. That may be chance."
    if frames is None:
        return f"Choosing saved labels: {what}, and {saving['most']} random ones do not reach it."
    verb = "saved" if frames > n else "cost"
    return f"Choosing {verb} labels: {what}. About {frames:.0f} random ones reach it, {frames / n:.1f} times as many."


def status(project: Project) -> str:
    """The lines of `status`; writes the page too, where the folder can be written."""
    pool = list_pool(project)
    facts = _facts(project, pool)
    title, images = project.root.resolve().name, project.config.images
    page = f"no page: {project.root} cannot be written"
    if project.writable:
        html = render("alges_fast.project", "status", title=title, kicker="project", images=images, **facts)
        atomic.write_text(project.root / PAGE, html)
        page = f"as a page: {project.root / PAGE}"
    lines = [
        f"{project.root}: {facts['n_frames']:,} frames of {facts['of']}, classes {', '.join(project.config.classes)}",
        f"labelled: {facts['labelled']}",
    ]
    for row in facts["classes"]:
        lines.append(f"  {row['name']:20s} {row['share']:>7s}  in {row['frames']} frames  Dice {row['dice']}")
    lines += [facts["alike"], *facts["lost"], *facts["predictions"]]
    lines += [f"round {row['number']}: {row['what']}; {row['state']}" for row in facts["rounds"]]
    lines += [*facts["seconds"], facts["dice"], facts["another"], facts["saving"], *facts["next"].lines()]
    return "\n".join([*lines, page])


def dice_line(project: Project) -> str:
    """Dice of the newest model as a sentence."""
    if not project.models:
        return "No model is trained yet."
    model = project.models[-1]
    facts = model.facts
    knows = f"Model {model.number} ({_network_of(model)}) knows {facts['frames']} frames."
    if facts["dice"] is None:
        unknown = f"How good it is cannot be told yet: from {ENOUGH} annotated frames on a fifth is held out"
        return f"{knows} {unknown} to measure with."
    unit = "series of pictures" if facts["of_pictures"] else "videos"
    how = f"of {unit} it did not see"
    if not facts["whole_videos"]:
        how = f"of {unit} it saw other frames of, so it flatters"
    elif facts["of_pictures"]:
        how += " (it flatters if several series are of one video)"
    return (
        f"{knows} Dice {_interval(facts['dice']['mean'])} on {len(facts['held_out'])} held-out frames {how}, by a "
        "model trained without them."
    )


def _facts(project: Project, pool: ProjectPool) -> dict[str, Any]:
    config = project.config
    labels = read_labels(project)
    pixels = np.sum(list(labels.pixels.values()), axis=0) if labels.pixels else np.zeros(len(config.classes), int)
    whole = sum(windows is None for windows in project.labelled.values())
    parts = [f"{whole} frames"]
    if labels.n_windows:
        partly = len(project.labelled) - whole
        parts.append(f"{labels.n_windows} windows of {partly} more frames")
    labelled = f"{' and '.join(parts)}, {len(project.refused)} refused; outline drawn {labels.outline:,} pixels"
    dice = [None] * len(config.classes)
    if project.models and (measured := project.models[-1].facts["dice"]):
        dice = measured["classes"]
    colours = palette(len(config.classes))
    videos: dict[str, list[int]] = {}
    for frame in pool.frames:
        count = videos.setdefault(frame.video, [0, 0])
        count[0] += frame.id in project.labelled
        count[1] += 1
    return {
        "n_frames": len(pool.frames),
        "of": _sources(pool),
        "labelled": labelled,
        "classes": [
            {
                "name": name,
                "colour": "#{:02x}{:02x}{:02x}".format(*colours[k]),
                "share": f"{100 * pixels[k] / max(pixels.sum(), 1):.1f} %",
                "frames": sum(bool(counts[k]) for counts in labels.pixels.values()),
                "dice": _interval(dice[k]),
            }
            for k, name in enumerate(config.classes)
        ],
        "videos": [{"name": name or "(pool)", "labelled": n, "frames": m} for name, (n, m) in videos.items()],
        "rounds": [_round_row(project, round) for round in project.rounds],
        "dice": dice_line(project),
        "another": another_round(project),
        "saving": label_saving(project),
        "next": next_step(project),
        "curves": _curves(project),
        "lost": [
            f"round {number} is missing: what it picked and what came back for it no longer count"
            for number in project.lost_rounds
        ],
        "predictions": [] if (of := newest(project)) is None else [_predictions_line(project, of)],
        "seconds": [*timing_lines(project), *([_expected_seconds(project, labels)] if labels.masks else [])],
        "alike": likeness_line(project, len(pool.frames)),
        "left_out": pool.left_out.by_file(),
    }


def _predictions_line(project: Project, of: Predictions) -> str:
    """What there is of imported predictions."""
    what = f"predictions: of {len(of.frames)} frames, {len(of.scored)} with probabilities"
    return what if in_use(project) is not None else f"{what}; labels came in since, so they no longer count"


def _expected_seconds(project: Project, labels: Labels) -> str:
    """What annotating all of this takes, by the prices."""
    whole = sum(windows is None for windows in project.labelled.values())
    prices, own = prices_of(project)
    seconds = prices.seconds(
        pictures=whole + sheets_for(labels.n_windows), looks=whole + labels.n_windows, outline=labels.sides, side=1.0
    )
    return (
        f"about {seconds / 3600:.1f} hours of annotating so far, by {'its own' if own else 'assumed'} prices: "
        f"{prices.open:.3g} s a picture, {prices.look:.3g} s a look, {prices.draw:.3g} s a side of outline"
    )


def _sources(pool: ProjectPool) -> str:
    """How many videos and series of pictures the frames are of. Pictures of one video may be several series: nothing
    but the names of files and folders tells them apart."""
    videos = {frame.video for frame in pool.frames if frame.timestamp is not None}
    series = {frame.video for frame in pool.frames if frame.timestamp is None}
    parts = [f"{len(videos)} video{'s' if len(videos) > 1 else ''}"] if videos else []
    parts += [f"{len(series)} series of pictures"] if series else []
    return " and ".join(parts)


def outline_of(project: Project, import_: Import) -> str:
    """What was drawn in an import, beside what was predicted of it."""
    pieces: set[Candidate] = set()
    for id, windows in import_.frames.items():
        pieces.update([id] if windows is None else windows)
    round = next(round for round in project.rounds if round.number == import_.round)
    said = f"outline drawn: {import_.outline:,} pixels"
    if round.outlines and pieces.issubset(round.outlines):
        said += f", predicted: {round.expected(pieces):,.0f}"
    return said


def _round_row(project: Project, round: Round) -> dict[str, Any]:
    imports = [import_ for import_ in project.imports if import_.round == round.number]
    drawn = sum(import_.outline for import_ in imports)
    if not round.asked:
        what, state = "labels that were there before", f"{sum(len(i.frames) for i in imports)} frames"
    else:
        asked = round.asked
        unit = (
            f"windows of {asked['regions']}, worth {asked['n']} frames" if asked["regions"] else f"{asked['n']} frames"
        )
        what = f"{unit} by {strategy_of(asked, round.model)}"
        if round.considered is not None and (heard := str(round.considered)):
            what += f", {heard}"
        if round.picks is None:
            state = "not out yet"
        else:
            missing = set(project.missing)
            back = sum(pick not in missing for pick in round.picks)
            state = f"{back} of {len(round.picks)} picks came back"
            if round.outlines:
                expected = round.expected(pick for pick in round.picks if pick not in missing)
                state += f", outline drawn {drawn:,} pixels, predicted {expected:,.0f}"
    return {
        "number": round.number,
        "what": what,
        "state": state,
        "outline": f"{drawn:,}",
        "page": f"rounds/{round.number:03d}/index.html" if round.picks is not None else None,
    }


def _curves(project: Project) -> dict[str, Any] | None:
    """Dice over annotated frames, a line for the head and for each whole network, as coordinates of a picture of 640 x
    260; None for no point."""
    measured: dict[str, list[tuple[int, Sequence[float | None]]]] = {}
    for model in project.models:
        dice = model.facts["dice"]
        if dice is not None and dice["mean"][0] is not None:
            measured.setdefault(_network_of(model), []).append((model.facts["frames"], dice["mean"]))
    if not measured:
        return None
    most = max(frames for points in measured.values() for frames, _ in points)

    def x(frames: float) -> float:
        return round(44 + 580 * frames / most, 1)

    def y(dice: float | None) -> float | None:
        return None if dice is None else round(220 - 200 * dice, 1)

    return {
        "lines": [
            {
                "name": name,
                "line": " ".join(f"{x(frames)},{y(dice[0])}" for frames, dice in points),
                "points": [
                    {
                        "x": x(frames),
                        "y": y(value),
                        "low": y(low),
                        "high": y(high),
                        "title": f"{name}, {frames} frames: Dice {_interval([value, low, high])}",
                        "frames": frames,
                    }
                    for frames, (value, low, high) in points
                ],
            }
            for name, points in measured.items()
        ],
        "grid": [(y(dice), f"{dice:.1f}") for dice in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)],
    }


def _network_of(model: TrainedModel) -> str:
    architecture = str(model.network["architecture"])
    return "head" if architecture == FROZEN else architecture


def _interval(value: Sequence[float | None] | None) -> str:
    if value is None or value[0] is None:
        return "not known"
    if value[1] is None or value[2] is None:
        return f"{value[0]:.3f} (too few frames for an interval)"
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
