"""The step that chooses what to annotate next and puts it into files for the annotators."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.annotation.desk import Desk
from alges_fast.annotation.lists import refused_among
from alges_fast.annotation.models import load_model, normalisation_in
from alges_fast.annotation.page import Asked
from alges_fast.annotation.picks import Pick, PickedFrame, show_picked, show_untrained
from alges_fast.annotation.sources import GAP_SECONDS, PoolFrame, places
from alges_fast.annotation.writing import remove_refused, write_round
from alges_fast.data.frame_pool import FramePool
from alges_fast.errors import UserError
from alges_fast.normalisation import IMAGENET
from alges_fast.project import network
from alges_fast.project.folder import Project, Round, TrainedModel
from alges_fast.project.label_studio import SERVER
from alges_fast.project.labels import read_labels
from alges_fast.project.pool import Progress, ProjectPool, decoded, list_pool, silent
from alges_fast.selection import BrokenPromise, NotEnough, Selection, Unit, choose
from alges_fast.selection.defaults import COLD_START, default_strategy
from alges_fast.strategies import Candidate, Query, Strategy, frame_of, get_strategy, scores_of
from alges_fast.windows import Window, grid_of

PLANNED_ROUNDS = 6
"""A project has no last round. Strategies with a schedule, as claspe, are told that the fifth query is their last: from
then on they do what they do last."""


@dataclass(frozen=True)
class NextSettings:
    """What to choose.

    Args:
        n: how many frames; with regions, how many whole frames the windows may add up to.
        regions: rows x columns of windows, such as 8x8; None for whole frames.
        strategy: by default one that needs no model before the first training, then one that asks the model.
        model: a model of the user's that chooses and predicts in the place of the project's own.
        min_gap: frames of one video are picked at least this far apart, in seconds of a video file and in numbers of
            numbered pictures; by default 2 seconds, 50 numbers. Halved where too few are left.
        budget: pixels, or outline: as many frames, or windows, as cost together what n frames do on average, where each
            costs the outline that the model predicts in it and a quarter of its side.
        reject: frames, and windows as picks.csv names them, that are not wanted, now or later. Where they are picks of
            the round that is out, each is replaced and the other picks stay.
        desk: what windows are annotated on: sheets of 24 to 36, crops (a picture each), or frames; auto is sheets for
            CVAT and crops for Label Studio.
    """

    n: int = 20
    regions: str | None = None
    strategy: str | None = None
    model: str | None = None
    min_gap: float | None = None
    budget: Unit = "pixels"
    reject: tuple[str, ...] = ()
    desk: Desk = "auto"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"-n is {self.n}: give at least 1")
        if self.budget not in ("pixels", "outline"):
            raise UserError(f"--budget is {self.budget}: give pixels or outline")
        if self.desk not in get_args(Desk):
            raise UserError(f"--desk is {self.desk}: give {', '.join(get_args(Desk))}")
        if self.min_gap is not None and not 0 <= self.min_gap < math.inf:
            raise UserError(f"--min_gap is {self.min_gap}: give a finite number, 0 or more")
        try:
            _ = self.grid
        except ValueError as error:
            raise UserError(f"--regions {error}") from error
        if self.strategy is not None and get_strategy(self.strategy).takes_whole_pool:
            raise UserError(f"--strategy {self.strategy} takes the whole pool, so there is nothing to choose")

    @property
    def grid(self) -> tuple[int, int] | None:
        return None if self.regions is None else grid_of(self.regions)


@dataclass(frozen=True)
class _Scorer:
    """What rates the pool and predicts on its frames.

    pool: what the model takes, by id: maps, or pictures before `transform`. maps: those of the frozen encoder.
    model: None where nothing is trained.
    """

    pool: Any
    maps: network.Maps
    model: nn.Module | None
    name: str | None
    transform: Callable[[Tensor], Tensor] | None = None

    def inputs_of(self, frame: PoolFrame, image: NDArray[np.uint8]) -> Tensor:
        """A batch of one for the model."""
        item: Tensor = self.pool[self.maps.ids.index(frame.id)][1][None]
        return item.float() if self.transform is None else self.transform(item)


def choose_round(project: Project, settings: NextSettings, progress: Progress = silent) -> Round:
    """The round that is out, if it was asked for in these words and nothing of it came back; else a new one.

    More to reject than then replaces picks of the round that is out.

    Raises:
        UserError: a step that must come before, or a pool with too little left.
    """
    settings, out = _in_hand(project, settings)
    asked = _asked(settings)
    if out is not None and asked == {**_asked(NextSettings()), **out.asked}:
        return out
    own = _newest_model(project, settings)
    strategy = get_strategy(strategy_of(asked, None if own is None else own.number))()
    if strategy.needs_model and own is None and settings.model is None:
        raise UserError(
            f"--strategy {strategy.name} needs a trained model: annotate a first round by another, such as {COLD_START}"
        )
    if settings.budget == "outline" and own is None and settings.model is None:
        raise UserError("--budget outline is predicted by a trained model: leave it out of the first round")
    pool, images = decoded(list_pool(project), project.config.image_size, progress)
    known = frozenset(frame.id for frame in pool.frames)
    windows = settings.grid is not None
    refused = refused_among(known, settings.reject, pool.left_out, windows=windows, source="--reject")
    model = None if own is None or settings.model else own.number
    number = project.begin_round(asked, model).number if out is None else out.number
    frozen = network.frozen(project, pool.frames, images, progress)
    scorer = _scorer(project, pool, images, frozen, own, settings)
    query = _query(project, pool, scorer, settings, number)
    picks = _picks(pool, _chosen(project, pool, query, strategy, settings, number, refused))
    if out is not None:
        _check_others_stay(project, out, model, picks, {*refused})
        project.withdraw(out, asked)
        remove_refused(out.folder, refused, picks)
    _write(project, project.rounds[-1], pool, picks, scorer, strategy, settings, progress)
    project.forget()
    return project.rounds[-1]


def strategy_of(asked: Mapping[str, Any], model: int | None) -> str:
    """The strategy of a round: what was asked for, or else one that suits whether a model chooses."""
    if asked["strategy"] is not None:
        return str(asked["strategy"])
    has_model = model is not None or asked["model"] is not None
    return default_strategy(model=has_model, windows=asked["regions"] is not None)


def _asked(settings: NextSettings) -> dict[str, Any]:
    return {**asdict(settings), "reject": list(settings.reject)}  # as JSON has it


def _in_hand(project: Project, settings: NextSettings) -> tuple[NextSettings, Round | None]:
    """The settings with what was rejected before in the same round; that round, where it is out.

    Raises:
        UserError: a round is out that was asked for in other words, or that can no longer be changed.
    """
    last = project.rounds[-1] if project.rounds else None
    if last is None or not last.asked or project.answered(last):
        return settings, None
    before = {**_asked(NextSettings()), **last.asked}
    if {**before, "reject": []} == _asked(replace(settings, reject=())):
        settings = replace(settings, reject=tuple(dict.fromkeys([*before["reject"], *settings.reject])))
    elif last.picks is not None:
        raise UserError(
            f"round {last.number} is out and nothing of it came back: {project.command('import', 'EXPORT')} first, or "
            f"delete {last.folder} to choose anew"
        )
    if last.picks is None:
        return settings, None
    if _asked(settings) != before and (last.folder / "label_studio" / SERVER).exists():
        raise UserError(f"round {last.number} is on a server: skip the frames there, then {project.command('import')}")
    return settings, last


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
    wants_model = settings.strategy is None or get_strategy(settings.strategy).needs_model
    if wants_model and settings.model is None:
        raise UserError(f"the labels changed since the last training: {project.command('train')} first")
    return newest


def _scorer(
    project: Project,
    pool: ProjectPool,
    images: NDArray[np.uint8],
    frozen: network.Frozen,
    own: TrainedModel | None,
    settings: NextSettings,
) -> _Scorer:
    size = project.config.image_size
    frames = FramePool([frame.id for frame in pool.frames], lambda at: torch.from_numpy(np.array(images[at])))
    if settings.model is not None:

        def build(n_classes: int) -> nn.Module:
            raise UserError(f"--model {settings.model}: give the whole model (.pt2, .ts or package.module:function)")

        model, _ = load_model(settings.model, image_size=size, build=build)
        model.eval().requires_grad_(False)
        transform = normalisation_in(settings.model) or IMAGENET
        return _Scorer(frames, frozen.maps, model, Path(settings.model).name, transform)
    if own is None:
        return _Scorer(frames, frozen.maps, None, None)
    if not network.is_frozen(own):
        model, transform = network.load_whole(own)
        return _Scorer(frames, frozen.maps, model, f"model {own.number}", transform)
    head = network.load_head(project, own, frozen.encoder.trunk).requires_grad_(False)
    return _Scorer(frozen.maps, frozen.maps, head, f"model {own.number}")


def _query(project: Project, pool: ProjectPool, scorer: _Scorer, settings: NextSettings, number: int) -> Query:
    labelled = project.labelled
    return Query(
        candidates=[frame.id for frame in pool.frames],
        pool=scorer.pool,
        model=scorer.model,
        labelled=[piece for id, windows in labelled.items() if id in pool.by_id for piece in (windows or [id])],
        regions=settings.grid,
        sizes=pool.sizes if settings.grid or settings.budget == "outline" else {},
        class_shares=read_labels(project).shares() if labelled else None,
        videos={frame.id: frame.video for frame in pool.frames},
        features=scorer.maps if scorer.model is None or scorer.pool is scorer.maps else None,
        seed=project.config.seed,
        round=sum(1 for round in project.rounds if round.asked and round.number < number),
        n_rounds=PLANNED_ROUNDS,
        transform=scorer.transform,
    )


def _chosen(
    project: Project,
    pool: ProjectPool,
    query: Query,
    strategy: Strategy,
    settings: NextSettings,
    number: int,
    refused: Sequence[Candidate],
) -> Selection:
    """What is neither labelled nor refused nor out with an annotator; others in the place of what is refused now."""
    out = project.out_before(number)
    away = [*project.refused_before(number)]
    for id, windows in out.items():
        away += [id] if windows is None or settings.grid is None else windows
    gap = GAP_SECONDS if settings.min_gap is None else settings.min_gap
    apart = places(pool.frames, settings.min_gap)
    try:
        chosen = choose(strategy, query, settings.n, budget=settings.budget, places=apart, min_gap=gap, away=away)
    except NotEnough as error:
        what = "frames" if settings.grid is None else "windows"
        raise UserError(
            f"-n {settings.n}: the pool has {error.n_left} {what} left to choose from, and {len(project.missing)} are "
            "out with annotators: ask for fewer"
        ) from None
    except BrokenPromise as error:
        raise UserError(str(error)) from None
    try:
        return chosen.without(refused)
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


def _write(
    project: Project,
    round: Round,
    pool: ProjectPool,
    picks: Sequence[Pick],
    scorer: _Scorer,
    strategy: Strategy,
    settings: NextSettings,
    progress: Progress,
) -> None:
    config = project.config
    asked = Asked(
        strategy=strategy.name,
        seed=config.seed,
        images=config.images,
        model=scorer.name,
        regions=settings.regions,
        refusing="Once it is with annotators: in CVAT give the frame the tag “refused”, in Label Studio skip it. What "
        "is refused is not asked for again.",
        budget=settings.budget,
    )
    n_frames = len({pick.frame.id for pick in picks})

    def picked_frames() -> Iterator[PickedFrame]:
        for number, shown in enumerate(_picked_frames(picks, scorer, pool, strategy, settings)):
            progress("drawing the picks", number, n_frames)
            yield shown

    write_round(
        round.folder,
        asked,
        config.classes,
        picks,
        picked_frames(),
        budget=sum(pick.cost for pick in picks) if settings.grid else None,
        left_out=pool.left_out,
        image_prefix=config.image_prefix,
        desk=settings.desk,
        series=f"round{round.number:03d}",
    )


def _picked_frames(
    picks: Sequence[Pick], scorer: _Scorer, pool: ProjectPool, strategy: Strategy, settings: NextSettings
) -> Iterator[PickedFrame]:
    if scorer.model is not None:
        yield from show_picked(
            scorer.model,
            picks,
            output=strategy.embedding,
            class_weights=None,
            regions=settings.grid,
            inputs_of=scorer.inputs_of,
            device=torch.device("cpu"),
            precision="32-true",
        )
        return
    yield from show_untrained(picks, scorer.maps, settings.grid)
