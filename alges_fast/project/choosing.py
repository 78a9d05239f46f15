"""The step that chooses what to annotate next and puts it into files for the annotators.

Processes of one job choose together: the first reads and writes the folder for all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from alges_fast.annotation.lists import refused_among, with_labelled
from alges_fast.annotation.page import Asked
from alges_fast.annotation.picks import Pick, PickedFrame, show_picked, show_untrained
from alges_fast.annotation.sources import GAP_SECONDS, FrameReader, LeftOut, places
from alges_fast.annotation.writing import check_names, remove_refused, write_round
from alges_fast.data.files import FaultyFile
from alges_fast.errors import UserError, one_line
from alges_fast.job import Job, device_of
from alges_fast.pool.errors import CannotContinue, RowsNotWritten
from alges_fast.progress import Progress, silent
from alges_fast.project import predictions
from alges_fast.project.asking import CONSIDERED, NextSettings, asked_for, strategy_of
from alges_fast.project.folder import FrameCounts, Project, Round, TrainedModel
from alges_fast.project.label_studio import SERVER
from alges_fast.project.labels import read_labels
from alges_fast.project.near_duplicates import note_likeness, stand_for_all
from alges_fast.project.pool import ProjectPool, list_pool
from alges_fast.project.scoring import Frames, Model, chooser, read_frames
from alges_fast.selection import NotEnough, Selection, choose
from alges_fast.selection.defaults import COLD_START
from alges_fast.strategies import Candidate, Query, Strategy, frame_of, get_strategy, scores_of, strategy_names
from alges_fast.windows import Window

PLANNED_ROUNDS = 6
"""A project has no last round. Strategies with a schedule, as claspe, are told that the fifth query is their last: from
then on they do what they do last."""

ALONE = Job(None)


@dataclass(frozen=True)
class Request:
    """A round to choose.

    number: of the round. model: that chooses; None before there is one. consider: of how many frames, where not of all.
    labelled: everywhere. refused: picks to replace.
    """

    project: Project
    settings: NextSettings
    number: int
    strategy: Strategy
    model: Model | None
    consider: int | None
    labelled: Sequence[Candidate]
    refused: Sequence[Candidate]
    progress: Progress
    job: Job


def choose_round(
    project: Project,
    settings: NextSettings,
    reject: Sequence[str] = (),
    progress: Progress = silent,
    job: Job = ALONE,
) -> Round:
    """The round that is out, if it was asked for in these words and nothing of it came back; else a new one.

    Args:
        reject: frames, and windows as picks.csv names them, that are not wanted, now or later. Where they are picks of
            the round that is out, each is replaced and the other picks stay.
        job: the processes that choose together, each with this call.

    Raises:
        UserError: a step that must come before, or a pool with too little left.
    """
    if job.from_leader(lambda: _by_predictions(project, settings)):
        settings = replace(settings, model=predictions.NAME)
    reject, out = job.from_leader(lambda: _in_hand(project, settings, reject))
    asked = asked_for(settings, reject)
    if out is not None and asked == out.asked:
        return out
    own = None if settings.model is not None else _newest_model(project, settings)
    named = strategy_of(asked, None if own is None else own.number)
    strategy = get_strategy(named)()
    _check(strategy, named, settings, own)
    pool, labelled = _listed(project, settings)
    known = frozenset(frame.id for frame in pool.frames)
    refused = refused_among(known, reject, pool.left_out, windows=settings.grid is not None, source="--reject")
    device = device_of(settings.device)
    model = chooser(project, own, settings)
    looks = strategy.reads_images or settings.budget == "outline" or (model is not None and model.over_maps)
    looks, compares = looks or settings.thin is not None, settings.thin is not None
    frames = read_frames(project, pool, model, looks=looks, compares=compares, device=device, progress=progress)
    if model is not None and not project.config.classes:
        project.config = replace(project.config, classes=model.classes)
    number = project.next_number if out is None else out.number
    consider = max(CONSIDERED, settings.n) if looks and settings.consider is None else settings.consider
    request = Request(project, settings, number, strategy, model, consider, labelled, refused, progress, job)

    def picked(frames: Frames) -> tuple[Frames, list[Pick], Selection]:
        chosen = _chosen(request, frames)
        picks = _picks(frames.pool, chosen)
        faults = {} if looks else job.from_leader(lambda: _faults_of(picks))
        if not faults:
            return frames, picks, chosen
        # Nothing had been read: choose again without them, as if they were not in the pool.
        for id, fault in faults.items():
            frames.pool.left_out.add(id, fault)
        readable = [frame for frame in frames.pool.frames if frame.id not in faults]
        usable = replace(pool, frames=readable)
        return picked(
            read_frames(project, usable, model, looks=False, compares=False, device=device, progress=progress)
        )

    if settings.thin is not None:
        of_pool = frames
        frames = replace(frames, standing=job.from_leader(lambda: _standing(request, of_pool)))
    frames, picks, chosen = picked(frames)
    thinned = 0 if frames.standing is None else len(frames.pool.frames) - len(frames.standing)
    considered, budget = FrameCounts(chosen.n_considered, chosen.n_open, thinned), chosen.budget
    del chosen  # what is known of millions of windows takes more memory than all that is written

    def written() -> Round:
        if out is None:
            round = project.begin_round(asked, None if own is None else own.number, considered)
        else:
            _check_others_stay(project, out, None if own is None else own.number, picks, {*refused})
            project.withdraw(out, asked, considered)
            remove_refused(out.folder, refused, picks)
            round = project.rounds[-1]
        if frames.maps is not None:
            note_likeness(project, frames.maps, _videos(frames), progress)
        _write(request, round, frames, picks, budget)
        project.forget()
        return project.rounds[-1]

    return job.from_leader(written)


def _standing(of: Request, frames: Frames) -> Sequence[str]:
    """Ids of the frames that stand for all."""
    assert frames.maps is not None
    assert of.settings.thin is not None
    taken = [*map(str, map(frame_of, of.labelled)), *of.project.out_before(of.number)]
    return stand_for_all(frames.maps, _videos(frames), of.settings.thin, taken, of.progress)


def _videos(frames: Frames) -> list[str]:
    return [frame.video for frame in frames.pool.frames]


def _by_predictions(project: Project, settings: NextSettings) -> bool:
    """Whether imported predictions choose where no model is named."""
    of = predictions.in_use(project) if settings.model is None else None
    wants = settings.strategy is None or get_strategy(settings.strategy).needs_model
    return of is not None and bool(of.scored) and wants


def _check(strategy: Strategy, named: str, settings: NextSettings, own: TrainedModel | None) -> None:
    """Raises UserError for a strategy that cannot choose here."""
    if strategy.takes_whole_pool:
        raise UserError(f"--strategy {named} takes the whole pool, so there is nothing to choose")
    if strategy.needs_model and own is None and settings.model is None:
        raise UserError(
            f"--strategy {named} needs a trained model: give one with --model, or choose a first round by another, "
            f"such as {COLD_START}"
        )
    if settings.class_weights is not None and not strategy.weighs_classes:
        others = ", ".join(name for name in strategy_names() if get_strategy(name).weighs_classes)
        raise UserError(f"--class_weights: {strategy.name} has no rows per class to weigh; use {others}")
    if strategy.trains_own_model and ":" not in (settings.model or ""):
        raise UserError(f"--strategy {named} needs a model that was trained for it: give it as package.module:function")
    if settings.budget == "outline" and own is None and settings.model is None:
        raise UserError(
            "--budget outline is predicted by a trained model: give --model, or leave it out of the first round"
        )


def _in_hand(project: Project, settings: NextSettings, reject: Sequence[str]) -> tuple[Sequence[str], Round | None]:
    """What is rejected, with what was before in the same round; that round, where it is out.

    Raises:
        UserError: a round is out that was asked for in other words, or that can no longer be changed.
    """
    last = project.rounds[-1] if project.rounds else None
    if last is None or not last.asked or project.answered(last):
        return reject, None
    before = last.asked
    if {**before, "reject": []} == asked_for(settings, ()):
        reject = tuple(dict.fromkeys([*before["reject"], *reject]))
    elif last.picks is not None:
        raise UserError(
            f"round {last.number} is out and nothing of it came back: {project.command('import', 'EXPORT')} first, or "
            f"delete {last.folder} to choose anew"
        )
    if last.picks is None:
        return reject, None
    if asked_for(settings, reject) != before and (last.folder / "label_studio" / SERVER).exists():
        raise UserError(f"round {last.number} is on a server: skip the frames there, then {project.command('import')}")
    return reject, last


def _listed(project: Project, settings: NextSettings) -> tuple[ProjectPool, list[Candidate]]:
    """The pool, with pictures from elsewhere that are labelled, and all that is labelled."""
    pool = list_pool(project, LeftOut(settings.on_bad_image))
    frames, elsewhere = with_labelled(pool.frames, settings.labelled, pool.left_out)
    check_names(project.root, (frame.id for frame in frames))
    labelled: list[Candidate] = []
    for id, windows in project.labelled.items():
        labelled += [id] if windows is None else windows
    return ProjectPool(frames, pool.left_out, pool.root), [*labelled, *elsewhere]


def _check_others_stay(
    project: Project, out: Round, model: int | None, picks: Sequence[Pick], refused: Collection[Candidate]
) -> None:
    """Raises UserError where choosing again for the round that is out would replace more than what is refused."""
    stay = [pick for pick in out.picks or () if pick not in refused and frame_of(pick) not in refused]
    found: list[Candidate] = [pick.frame.id if pick.window is None else pick.window for pick in picks]
    labels_came = any(import_.round == out.number for import_ in project.imports)
    if found[: len(stay)] != stay or model != out.model or labels_came:
        raise UserError(
            f"the pool, the labels or the model have changed since round {out.number} was chosen, so that no other "
            "frames can take the place of those: refuse them where you annotate, or delete "
            f"{out.folder} to choose anew"
        )


def _newest_model(project: Project, settings: NextSettings) -> TrainedModel | None:
    """None before anything is labelled. Raises UserError where labels came after the last training."""
    if not project.labelled:
        return None
    newest = project.models[-1] if project.models else None
    if newest is not None and project.known_to(newest):
        return newest
    if settings.strategy is None or get_strategy(settings.strategy).needs_model:
        raise UserError(f"the labels changed since the last training: {project.command('train')} first")
    return newest


def _query(of: Request, frames: Frames) -> Query:
    project, settings, model = of.project, of.settings, of.model
    pool = frames.pool
    writes = model is not None and not model.over_maps  # maps are quicker read than what is said of them

    def scored(done: int, total: int | None) -> None:
        of.progress("scoring frames", done, total or len(pool.frames))

    return Query(
        candidates=_large_enough(frames, settings.grid),
        pool=frames.inputs,
        model=None if model is None else model.network,
        labelled=[item for item in of.labelled if frame_of(item) in pool.by_id],
        regions=settings.grid,
        sizes=pool.sizes if settings.grid or settings.budget == "outline" else {},
        class_shares=read_labels(project).shares() if project.labelled else None,
        class_weights=None if model is None else model.weights,
        videos={frame.id: frame.video for frame in pool.frames},
        features=frames.maps,
        seed=project.config.seed,
        round=sum(1 for round in project.rounds if round.asked and round.number < of.number),
        n_rounds=PLANNED_ROUNDS,
        batch_size=(model.fixed if model is not None and model.fixed else settings.batch_size),
        device=device_of(settings.device),
        precision=settings.precision,
        transform=None if model is None else model.transform,
        scores_out=project.root / "scores" / _scores_of(settings, of.number) if writes else None,
        progress=scored,
        drawing=lambda done, total: of.progress("drawing from what was scored", done, total or done),
        group=of.job.group,
    )


def _large_enough(frames: Frames, grid: tuple[int, int] | None) -> Sequence[str]:
    """The candidates that a grid of windows can be laid over; the others are left out. Raises UserError: none is."""
    if grid is None:
        return frames.candidates
    left_out, usable, small = frames.pool.left_out, [], ""
    for id in frames.candidates:
        height, width = frames.pool.sizes.get(id, (0, 0))
        if height >= grid[0] and width >= grid[1]:
            usable.append(id)
        elif id not in left_out.reasons:
            windows = f"{grid[0]} rows x {grid[1]} columns of windows"
            small = f"{id}: {windows} do not fit {height} x {width} pixels (height x width): ask for fewer"
            left_out.add(id, FaultyFile(f"{small}, or remove it"))
    if small and not usable:
        raise UserError(small)
    return usable


def _scores_of(settings: NextSettings, number: int) -> str:
    """The folder of what is said of the pool for a round: other settings, or a later round, leave it alone."""
    asked = json.dumps(asked_for(settings, ()))
    return f"{number:03d}-{hashlib.blake2b(asked.encode(), digest_size=4).hexdigest()}"


def _chosen(of: Request, frames: Frames) -> Selection:
    """What is neither labelled nor refused nor out with an annotator; others in the place of what is refused now."""
    project, settings, query = of.project, of.settings, _query(of, frames)
    away = [*project.refused_before(of.number)]
    for id, windows in project.out_before(of.number).items():
        away += [id] if windows is None or settings.grid is None else windows
    try:
        chosen = choose(
            of.strategy,
            query,
            settings.n,
            budget=settings.budget,
            pixels=settings.budget_pixels,
            places=places(frames.pool.frames, settings.min_gap),
            min_gap=GAP_SECONDS if settings.min_gap is None else settings.min_gap,
            away=away,
            frames_at_most=settings.frames_at_most,
            consider=of.consider,
        )
    except NotEnough as error:
        if settings.budget_pixels is not None:
            raise UserError(f"--budget_pixels: the budget {error}") from None
        what = "frames" if settings.grid is None else "windows"
        where = "the pool has" if settings.consider is None else f"what --consider {settings.consider} leaves has"
        there = f"{len(project.missing)} are out with annotators"
        if frames.standing is not None:
            n_thinned = len(frames.pool.frames) - len(frames.standing)
            there += f" and {n_thinned} frames more are near-duplicates that --thin {settings.thin} leaves out"
        raise UserError(
            f"-n {settings.n}: {where} {error.n_left} {what} left to choose from, and {there}: ask for fewer"
        ) from None
    except CannotContinue as error:
        raise UserError(f"{one_line(error.reason)}: delete {query.scores_out} to score anew") from None
    except RowsNotWritten as error:
        raise UserError(f"{error.filename} cannot be written ({error.strerror}): make room, then run again") from None
    except ValueError as error:
        raise UserError(one_line(error)) from error
    try:
        return chosen.without(of.refused)
    except NotEnough:
        raise UserError("--reject: nothing is left that could take the place of all: ask for fewer") from None


def _picks(pool: ProjectPool, chosen: Selection) -> list[Pick]:
    scores = scores_of(chosen.rating, chosen.ids)
    return [
        Pick(
            pool.by_id[str(frame_of(item))],
            item if isinstance(item, Window) else None,
            scores.get(item),
            chosen.cost(item),
            chosen.outlines.get(item),
        )
        for item in chosen.ids
    ]


def _faults_of(picks: Sequence[Pick]) -> dict[str, FaultyFile]:
    """Why picked frames cannot be read, by id."""
    reader, faults = FrameReader(), {}
    for frame in {pick.frame.id: pick.frame for pick in picks}.values():
        try:
            reader.read(frame)
        except FaultyFile as fault:
            faults[frame.id] = fault
    return faults


def _write(of: Request, round: Round, frames: Frames, picks: Sequence[Pick], budget: int) -> None:
    config, settings = of.project.config, of.settings
    repeated = None if of.model is None else of.model.predictions
    if settings.model is None:
        repeated = predictions.in_use(of.project)
    asked = Asked(
        strategy=of.strategy.name,
        seed=config.seed,
        images=config.images,
        model=of.model.name if of.model is not None else None if repeated is None else predictions.NAME,
        regions=settings.regions,
        budget=settings.budget,
        considered=str(round.considered or ""),
        blind=not (of.strategy.needs_model or of.strategy.reads_images),
    )
    n_frames = len({pick.frame.id for pick in picks})

    def picked_frames() -> Iterator[PickedFrame]:
        for number, shown in enumerate(_shown(of, frames, picks)):
            of.progress("drawing the picks", number, n_frames)
            mask = None if repeated is None else repeated.mask(shown.frame.id)
            yield shown if mask is None else replace(shown, mask=mask)

    write_round(
        round.folder,
        asked,
        config.classes,
        picks,
        picked_frames(),
        budget=budget if settings.grid else None,
        left_out=frames.pool.left_out,
        image_prefix=config.image_prefix,
        desk=settings.desk,
        series=f"round{round.number:03d}",
    )
    for old in (of.project.root / "scores").glob("*"):
        if old.name != _scores_of(settings, round.number):
            shutil.rmtree(old)


def _shown(of: Request, frames: Frames, picks: Sequence[Pick]) -> Iterator[PickedFrame]:
    model, settings = of.model, of.settings
    if model is None:
        return show_untrained(picks, frames.maps, settings.grid)
    return show_picked(
        model.network,
        picks,
        output=of.strategy.embedding,
        class_weights=model.weights,
        regions=settings.grid,
        inputs_of=frames.inputs_of(model),
        device=device_of(settings.device),
        precision=settings.precision,
    )
