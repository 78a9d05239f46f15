"""The step that takes in what annotators give back: all of it, or one line that says why none of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alges_fast.annotation.imports import ExpectedFrame, Reading, ReturnedFrame, read_export, reading_of
from alges_fast.data.files import read_ids
from alges_fast.errors import UserError
from alges_fast.project.folder import Import, ImportDraft, Project
from alges_fast.project.pool import ProjectPool, list_pool
from alges_fast.training.labelled import box_of, outline

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


def import_exports(project: Project, exports: Sequence[Path], settings: ImportSettings) -> Import | None:
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
    """Any frame of the pool may come back; of those that went out as windows, the windows count."""
    out = project.out
    sizes = pool.sizes
    expected = [
        ExpectedFrame(frame.id, pool.names[frame.id], sizes[frame.id], out.get(frame.id) or ())
        for frame in pool.frames
        if frame.id in sizes
    ]
    finished = None
    if settings.finished is not None:
        try:
            lines = settings.finished.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--finished {settings.finished}: cannot be read ({error}): give a text file") from None
        finished = [line.strip() for line in lines if line.strip()]
    return reading_of(
        expected,
        project.config.classes,
        background=settings.background or project.config.background,
        palette=settings.palette,
        finished=finished,
    )


def fill(
    draft: ImportDraft,
    project: Project,
    pool: ProjectPool,
    returned: Iterable[ReturnedFrame],
    untouched: Untouched,
    earlier: Sequence[ImportDraft] = (),
) -> None:
    """Put the returned frames that say something new into a draft, one by one: an export has all that is finished.

    Args:
        earlier: drafts that will be taken in before this one.

    Raises:
        UserError: masks that nobody touched, unless told what to do with them.
    """
    same: list[str] = []
    for frame in returned:
        if _known(project, pool, frame):
            continue
        if not frame.refused and untouched != "accept" and _untouched(project, pool, frame):
            same.append(frame.id)
        elif frame.refused:
            draft.refused.append(frame.id)
        else:
            name = pool.names[frame.id]
            draft.add(frame.id, list(frame.windows) or None, name, _merged(project, frame, name, earlier))
            parts = [box_of(window) for window in frame.windows] or [np.s_[:, :]]
            draft.outline += sum(outline(frame.mask[part]) for part in parts)
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


def _known(project: Project, pool: ProjectPool, frame: ReturnedFrame) -> bool:
    if frame.refused:
        return frame.id in project.refused or frame.id in project.labelled
    labelled = project.labelled.get(frame.id, ())
    if labelled is not None and not (frame.windows and set(frame.windows) <= set(labelled)):
        return False
    label = project.label(pool.names[frame.id])
    parts = [box_of(window) for window in frame.windows] or [np.s_[:, :]]
    return all(np.array_equal(label[part], frame.mask[part]) for part in parts)


def _merged(project: Project, frame: ReturnedFrame, name: str, earlier: Sequence[ImportDraft]) -> NDArray[np.uint8]:
    """The label of a frame from now on: returned windows in what there is of it."""
    if not frame.windows:
        return frame.mask
    labels = [label for draft in reversed(earlier) if (label := draft.label(frame.id)) is not None]
    if not labels and frame.id not in project.labelled:
        return frame.mask
    merged = (labels[0] if labels else project.label(name)).copy()
    for window in frame.windows:
        merged[box_of(window)] = frame.mask[box_of(window)]
    return merged


def _untouched(project: Project, pool: ProjectPool, frame: ReturnedFrame) -> bool:
    """Whether a mask is, in all that it covers, what went out with the frame last."""
    for round in reversed(project.rounds):
        path = round.folder / "masks" / f"{pool.names[frame.id]}.png"
        if path.exists():
            sent = read_ids(path)
            parts = [box_of(window) for window in frame.windows] or [np.s_[:, :]]
            return sent.shape == frame.mask.shape and all(
                np.array_equal(sent[part], frame.mask[part]) for part in parts
            )
    return False
