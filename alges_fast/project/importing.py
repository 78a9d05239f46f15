"""The step that takes in what annotators give back: all of it, or one line that says why none of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alges_fast.annotation.imports import ExpectedFrame, Reading, ReturnedFrame, read_export, reading_of
from alges_fast.annotation.imports.sheets import expected_sheet, frames_on
from alges_fast.data.files import read_ids, read_lines
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.project.folder import Import, ImportDraft, Project, TimedPicture
from alges_fast.project.pool import ProjectPool, list_pool
from alges_fast.strategies import Candidate
from alges_fast.training.labelled import corrected, outline
from alges_fast.windows import Window

Untouched = Literal["ask", "accept", "leave"]
"""What to do with masks that came back as the model predicted them."""


@dataclass(frozen=True)
class ImportSettings:
    """How to read what comes back.

    Args:
        background: the class of pixels under no shape; by default the project's.
        palette: text file of lines "name r g b", for masks of colours.
        finished: text file of the frames to take, one name a line; by default those in which something is drawn.
        untouched: whether predictions that came back unchanged are labels.
    """

    background: str | None = None
    palette: Path | None = None
    finished: Path | None = None
    untouched: Untouched = "ask"


def import_exports(project: Project, exports: Sequence[Path], settings: ImportSettings | None = None) -> Import | None:
    """Read every export, then take all of it in that is new; None where nothing is.

    Raises:
        UserError: no exports, or one that cannot be read whole; masks that nobody touched; nothing is changed then.
    """
    if not exports:
        raise UserError(
            f"nothing to import: give what the tool exported, as {project.command('import', 'EXPORT.zip')}, or "
            "--label_studio URL"
        )
    pool = list_pool(project)
    settings = settings or ImportSettings()
    reading = reading_for(project, pool, settings)
    with project.drafting() as folder:
        draft = ImportDraft(folder / "0")
        fill(draft, project, pool, _frames_of(exports, reading), settings.untouched)
        return take_in(project, [draft], [[path.name for path in exports]])[0]


def _frames_of(exports: Sequence[Path], reading: Reading) -> Iterator[ReturnedFrame]:
    seen: set[str] = set()
    for path in exports:
        for frame in read_export(path, reading):
            if frame.id in seen:
                raise UserError(f"{path}: {frame.id} is in another export too: give one of them")
            seen.add(frame.id)
            yield frame


def reading_for(project: Project, pool: ProjectPool, settings: ImportSettings) -> Reading:
    """Any frame of the pool may come back, and any sheet that went out; of those with windows, the windows count."""
    out = project.out
    sizes = pool.sizes
    expected = [
        ExpectedFrame(frame.id, pool.names[frame.id], sizes[frame.id], out.get(frame.id) or ())
        for frame in pool.frames
        if frame.id in sizes
    ]
    expected += [expected_sheet(sheet) for round in project.rounds for sheet in round.sheets]
    return reading_of(
        expected,
        project.config.classes,
        background=settings.background or project.config.background,
        palette=settings.palette,
        finished=None if settings.finished is None else read_lines(settings.finished, "--finished"),
    )


def fill(
    draft: ImportDraft,
    project: Project,
    pool: ProjectPool,
    returned: Iterable[ReturnedFrame],
    untouched: Untouched,
    earlier: Sequence[ImportDraft] = (),
) -> None:
    """Put what of the returned frames and sheets is new into a draft, one by one: an export has all that is finished.

    Args:
        earlier: drafts that will be taken in before this one.

    Raises:
        UserError: predictions that nobody touched, unless told what to do with them.
    """
    sheets = {sheet.name: sheet for round in project.rounds for sheet in round.sheets}
    same: list[Candidate] = []
    for picture in returned:
        on_it = [picture] if picture.id not in sheets else frames_on(sheets[picture.id], picture, pool.sizes)
        taken = []
        for frame in on_it:
            left: ReturnedFrame | None = _less(frame, _known(project, pool, frame))
            if left is not None and untouched != "accept":
                same += (alike := _untouched(project, pool, left))
                left = _less(left, alike)
            if left is not None:
                _add(draft, project, pool, left, earlier)
                taken.append(left)
        if taken:
            draft.outside += picture.outside
            if picture.seconds is not None:
                draft.times.append(_timed(project, pool, taken, picture.seconds))
    if same and untouched == "ask":
        others = f" and {len(same) - 1} more" if len(same) > 1 else ""
        raise UserError(
            f"{same[0]}{others} came back exactly as the model predicted: give --accept_untouched if they were "
            "looked at and are right, or --leave_untouched to import the others alone"
        )
    order = {frame.id: number for number, frame in enumerate(pool.frames)}
    draft.frames = {id: draft.frames[id] for id in sorted(draft.frames, key=order.__getitem__)}


def take_in(project: Project, drafts: Sequence[ImportDraft], sources: Sequence[Sequence[str]]) -> list[Import | None]:
    """Drafts into the project, in their order; None for one that has nothing."""
    return [
        project.add_import(draft, of) if draft.frames or draft.refused else None
        for draft, of in zip(drafts, sources, strict=True)
    ]


def _add(
    draft: ImportDraft, project: Project, pool: ProjectPool, frame: ReturnedFrame, earlier: Sequence[ImportDraft]
) -> None:
    if frame.refused:
        draft.refused.append(frame.id)
        return
    draft.refused += frame.refused_windows
    if frame.windows or not frame.refused_windows:
        name = pool.names[frame.id]
        draft.add(frame.id, frame.windows, name, _merged(project, frame, name, [*earlier, draft]))
        draft.outline += sum(outline(frame.mask[box]) for box in _boxes(frame))


def _boxes(frame: ReturnedFrame) -> list[tuple[slice, slice]]:
    return [window.box for window in frame.windows] or [np.s_[:, :]]


def _known(project: Project, pool: ProjectPool, frame: ReturnedFrame) -> list[Candidate]:
    """Those of its windows, or the frame, of which the project knows what came back."""
    if frame.refused:
        return [frame.id] if frame.id in project.refused or frame.id in project.labelled else []
    labelled = project.labelled.get(frame.id, ())
    label = project.label(pool.names[frame.id]) if frame.id in project.labelled else None
    if not frame.windows and not frame.refused_windows:
        same = labelled is None and label is not None and np.array_equal(label, frame.mask)
        return [frame.id] if same else []
    known: list[Candidate] = [window for window in frame.refused_windows if window in project.refused]
    for window in frame.windows:
        if label is not None and (labelled is None or window in labelled):
            known += [window] if np.array_equal(label[window.box], frame.mask[window.box]) else []
    return known


def _less(frame: ReturnedFrame, items: Collection[Candidate]) -> ReturnedFrame | None:
    """The frame without these windows, or None where it is among them or nothing is left."""
    windows = [window for window in frame.windows if window not in items]
    refused = [window for window in frame.refused_windows if window not in items]
    had = frame.windows or frame.refused_windows
    if frame.id in items or (had and not windows and not refused):
        return None
    return replace(frame, windows=windows, refused_windows=refused)


def _merged(project: Project, frame: ReturnedFrame, name: str, earlier: Sequence[ImportDraft]) -> NDArray[np.uint8]:
    """The label of a frame from now on: returned windows in what there is of it."""
    if not frame.windows:
        return frame.mask
    labels = [label for draft in reversed(earlier) if (label := draft.label(frame.id)) is not None]
    if labels or frame.id in project.labelled:
        merged = (labels[0] if labels else project.label(name)).copy()
    else:
        merged = np.full_like(frame.mask, UNLABELLED)
    for window in frame.windows:
        merged[window.box] = frame.mask[window.box]
    return merged


def _untouched(project: Project, pool: ProjectPool, frame: ReturnedFrame) -> list[Candidate]:
    """Those of its windows, or the frame, whose mask is what went out last, and of which the annotator said nothing."""
    if frame.refused:
        return []
    if not frame.windows:
        sent = None if frame.refused_windows else _sent(project, pool, frame.id)
        return [frame.id] if sent is not None and np.array_equal(sent, frame.mask) else []
    said = set(frame.answered)
    same: list[Candidate] = []
    for window in frame.windows:
        sent = None if window in said else _sent(project, pool, frame.id, window)
        if sent is not None and np.array_equal(sent[window.box], frame.mask[window.box]):
            same.append(window)
    return same


def _sent(project: Project, pool: ProjectPool, id: str, window: Window | None = None) -> NDArray[np.uint8] | None:
    """The prediction (H, W) that went out with a frame, or with a window of it, last; None where none did."""
    for round in reversed(project.rounds):
        path = round.folder / "masks" / f"{pool.names[id]}.png"
        if path.exists():
            sent = read_ids(path)
            if window is None or (sent[window.box] != UNLABELLED).any():
                return sent
    return None


def _timed(project: Project, pool: ProjectPool, frames: Sequence[ReturnedFrame], seconds: float) -> TimedPicture:
    """What annotating a picture with these frames, or windows of them, took."""
    looks, sides, counts = 0, 0.0, np.zeros(256, np.int64)
    for frame in frames:
        if frame.refused or (frame.refused_windows and not frame.windows):
            continue
        side = sum(frame.mask.shape) / 2
        parts: Sequence[Window | None] = list(frame.windows) or [None]
        for box, window in zip(_boxes(frame), parts, strict=True):
            sent, label = _sent(project, pool, frame.id, window), frame.mask[box]
            drawn = outline(label) if sent is None else corrected(label, sent[box])
            looks, sides = looks + 1, sides + drawn / side
            counts += np.bincount(label.ravel(), minlength=256)
    whole = not any(frame.windows or frame.refused_windows for frame in frames)
    return TimedPicture(seconds, looks, sides, int(counts[:UNLABELLED].argmax()), whole)
