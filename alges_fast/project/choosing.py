"""The step that chooses what to annotate next and puts it into files for the annotators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.annotation.models import load_model, normalisation_in
from alges_fast.annotation.page import Asked
from alges_fast.annotation.picks import Pick, PickedFrame, show_picked, show_untrained
from alges_fast.annotation.sources import PoolFrame
from alges_fast.annotation.writing import write_round
from alges_fast.data.frame_pool import FramePool
from alges_fast.errors import UserError
from alges_fast.normalisation import IMAGENET
from alges_fast.project import network
from alges_fast.project.folder import Project, Round, TrainedModel
from alges_fast.project.labels import read_labels
from alges_fast.project.pool import Progress, ProjectPool, decoded, list_pool, silent
from alges_fast.selection.candidates import Candidates, Place
from alges_fast.selection.defaults import COLD_START, default_strategy
from alges_fast.strategies import Candidate, Query, get_strategy
from alges_fast.windows import Window, grid_of, windows_of

GAP_SECONDS, NUMBERS_A_SECOND = 2.0, 25.0
"""Frames of a video are picked at least this far apart; pictures are numbered at a video's rate."""


@dataclass(frozen=True)
class NextSettings:
    """What to choose.

    Args:
        n: how many frames; with regions, how many whole frames the windows may add up to.
        regions: rows x columns of windows, such as 4x4; None for whole frames.
        strategy: by default one that needs no model before the first training, then one that asks the model.
        model: a model of the user's that chooses and predicts in the place of the project's own.
    """

    n: int = 20
    regions: str | None = None
    strategy: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"-n is {self.n}: give at least 1")
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

    Raises:
        UserError: a step that must come before, or a pool with too little left.
    """
    asked = asdict(settings)
    last = project.rounds[-1] if project.rounds else None
    if last is not None and last.picks is not None and not project.answered(last):
        if dict(last.asked) == asked:
            return last
        raise UserError(
            f"round {last.number} is out and nothing of it came back: {project.command('import', 'EXPORT')} first, or "
            f"delete {last.folder} to choose anew"
        )
    own = _newest_model(project, settings)
    has_model = own is not None or settings.model is not None
    strategy = settings.strategy or default_strategy(model=has_model, windows=settings.grid is not None)
    if get_strategy(strategy).needs_model and own is None and settings.model is None:
        raise UserError(
            f"--strategy {strategy} needs a trained model: annotate a first round by another, such as {COLD_START}"
        )
    pool, images = decoded(list_pool(project), project.config.image_size, progress)
    round = project.begin_round(asked, None if own is None or settings.model else own.number)
    frozen = network.frozen(project, [frame.id for frame in pool.frames], images, progress)
    scorer = _scorer(project, pool, images, frozen, own, settings)
    query = _query(project, pool, scorer, settings, round.number, progress)
    picks = _picks(project, pool, query, strategy, settings)
    _write(project, round, pool, picks, scorer, strategy, settings, progress)
    project.forget()
    return project.rounds[-1]


def _newest_model(project: Project, settings: NextSettings) -> TrainedModel | None:
    """None before anything is labelled. Raises UserError where labels came after the last training."""
    if not project.labelled:
        return None
    newest = project.models[-1] if project.models else None
    if newest is not None and newest.n_imports == len(project.imports):
        return newest
    wants_model = settings.strategy is None or get_strategy(settings.strategy).needs_model
    if wants_model and settings.model is None:
        raise UserError(f"labels came in since the last training: {project.command('train')} first")
    return newest


def _scorer(
    project: Project,
    pool: ProjectPool,
    images: NDArray[np.uint8],
    frozen: network.Frozen,
    own: TrainedModel | None,
    settings: NextSettings,
) -> _Scorer:
    if settings.model is not None:
        size = project.config.image_size

        def build(n_classes: int) -> nn.Module:
            raise UserError(f"--model {settings.model}: give the whole model (.pt2, .ts or package.module:function)")

        model, _ = load_model(settings.model, image_size=size, build=build)
        model.eval().requires_grad_(False)
        frames = FramePool([frame.id for frame in pool.frames], lambda at: torch.from_numpy(np.array(images[at])))
        transform = normalisation_in(settings.model) or IMAGENET
        return _Scorer(frames, frozen.maps, model, Path(settings.model).name, transform)
    if own is None:
        return _Scorer(frozen.maps, frozen.maps, None, None)
    head = network.load_head(project, own, frozen.encoder.trunk).requires_grad_(False)
    return _Scorer(frozen.maps, frozen.maps, head, f"model {own.number}")


def _query(
    project: Project, pool: ProjectPool, scorer: _Scorer, settings: NextSettings, number: int, progress: Progress
) -> Query:
    """Candidates are what is neither labelled nor refused nor out with an annotator."""
    labelled = project.labelled
    ids = [frame.id for frame in pool.frames]
    grid = settings.grid
    candidates: list[Candidate] = []
    known: list[Candidate] = []
    out = {id: set(windows or ()) for id, windows in project.out.items()}
    for id in ids:
        windows = labelled.get(id, ())
        if grid is None:
            if id in labelled:
                known.append(id)
            elif id not in project.refused and id not in out:
                candidates.append(id)
            continue
        cells = windows_of(id, pool.sizes[id], grid)
        taken = set(cells) if windows is None else {cell for cell in cells if any(_overlap(cell, w) for w in windows)}
        known += [cell for cell in cells if cell in taken]
        whole_out = id in out and not out[id]
        if id not in project.refused and not whole_out:
            away = {cell for cell in cells if any(_overlap(cell, w) for w in out.get(id, ()))}
            candidates += [cell for cell in cells if cell not in taken and cell not in away]
    return Query(
        candidates=[*candidates, *known],
        pool=scorer.pool,
        model=scorer.model,
        labelled=known,
        regions=grid,
        class_shares=read_labels(project).shares() if labelled else None,
        videos={frame.id: frame.video for frame in pool.frames},
        features=scorer.maps,
        seed=project.config.seed,
        round=number,
        n_rounds=number + 1,
        transform=scorer.transform,
    )


def _overlap(one: Window, other: Window) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


def _picks(project: Project, pool: ProjectPool, query: Query, strategy: str, settings: NextSettings) -> list[Pick]:
    rating = get_strategy(strategy)().rate(query)
    places: dict[Any, Place] = {
        frame.id: (frame.video, frame.order / (NUMBERS_A_SECOND if frame.timestamp is None else 1))
        for frame in pool.frames
    }
    known = frozenset(query.labelled)
    free = [item for item in rating.ids if item not in known]
    budget, unit = settings.n, "frames"
    if settings.grid is not None:
        sizes = [pool.sizes[frame.id] for frame in pool.frames]
        budget, unit = settings.n * sum(height * width for height, width in sizes) // len(sizes), "pixels"
    left = sum(item.pixels if isinstance(item, Window) else 1 for item in free)
    if budget > left:
        away = sum(1 for _ in project.missing)
        raise UserError(
            f"-n {settings.n}: the pool has {len(free)} {'frames' if settings.grid is None else 'windows'} left to "
            f"choose from, and {away} are out with annotators: ask for fewer"
        )
    candidates: Candidates[Candidate] = Candidates(rating, known, places, GAP_SECONDS, ("-n", unit))
    chosen = candidates.fill([], budget, [])
    return [
        Pick(
            pool.by_id[str(item.id if isinstance(item, Window) else item)],
            item if isinstance(item, Window) else None,
            rating.scores.get(item),
            candidates.cost(item),
        )
        for item in chosen
    ]


def _write(
    project: Project,
    round: Round,
    pool: ProjectPool,
    picks: Sequence[Pick],
    scorer: _Scorer,
    strategy: str,
    settings: NextSettings,
    progress: Progress,
) -> None:
    config = project.config
    asked = Asked(
        strategy=strategy,
        seed=config.seed,
        images=config.images,
        model=scorer.name,
        regions=settings.regions,
        refusing="In CVAT give a frame the tag “refused”, in Label Studio skip it; it is not asked for again.",
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
        budget=sum(pick.window.pixels for pick in picks if pick.window is not None) if settings.grid else None,
        left_out=pool.left_out,
        image_prefix=config.image_prefix,
    )


def _picked_frames(
    picks: Sequence[Pick], scorer: _Scorer, pool: ProjectPool, strategy: str, settings: NextSettings
) -> Iterator[PickedFrame]:
    if scorer.model is not None:
        yield from show_picked(
            scorer.model,
            picks,
            strategy=strategy,
            class_weights=None,
            regions=settings.grid,
            inputs_of=scorer.inputs_of,
            device=torch.device("cpu"),
            precision="32-true",
        )
        return
    yield from show_untrained(picks, scorer.maps, settings.grid)
