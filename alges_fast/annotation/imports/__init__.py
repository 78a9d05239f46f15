"""What annotation tools give back, as one mask of class ids a frame.

Read are CVAT for images 1.1, CVAT's Segmentation mask 1.1, Label Studio's JSON, and masks in a folder or a zip; a file
says by its contents which it is. Anything that cannot be read whole is one line that names it.

Exports are not trusted. They are read frame by frame, so that no more than a frame of them is in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from alges_fast.annotation.imports.cvat_images import read_cvat_images
from alges_fast.annotation.imports.cvat_masks import FOLDER, LABEL_MAP, read_cvat_masks
from alges_fast.annotation.imports.documents import MAX_DOCUMENT
from alges_fast.annotation.imports.files import ExportFiles
from alges_fast.annotation.imports.frames import ExpectedFrame, Reading, ReturnedFrame
from alges_fast.annotation.imports.label_studio import read_label_studio, read_tasks
from alges_fast.annotation.imports.masks import read_masks, read_palette
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

__all__ = ["ExpectedFrame", "Reading", "ReturnedFrame", "read_export", "read_tasks", "reading_of"]


def reading_of(
    frames: Sequence[ExpectedFrame],
    classes: Sequence[str],
    *,
    background: str | None = None,
    palette: Path | None = None,
    finished: Collection[str] | None = None,
) -> Reading:
    """How exports are to be read.

    Args:
        frames: what may come back.
        classes: names in the order of their ids.
        background: the class of pixels under no shape; by default they are unlabelled.
        palette: text file of lines "name r g b", for masks of colours.
        finished: ids or names of the frames to take; by default those in which something is drawn.

    Raises:
        UserError: a background that is no class, a damaged palette, a finished frame that is not expected.
    """
    reading = Reading(frames, classes)
    done = (
        None if finished is None else frozenset(reading.frame(_line(frames, name), "finished").id for name in finished)
    )
    return replace(
        reading,
        background=UNLABELLED if background is None else reading.class_id(background, "--background"),
        palette=None if palette is None else read_palette(palette, reading),
        finished=done,
    )


def read_export(path: Path, reading: Reading) -> Iterator[ReturnedFrame]:
    """The annotated and refused frames of what a tool exported, in its order, as they are read.

    Raises:
        UserError: what cannot be read whole: a damaged file, an unknown class or frame, another size; an empty export.
            It may come after frames, which count for nothing then.
    """
    empty = True
    with _understood(path):
        for frame in _read(path, reading):
            empty = False
            yield frame
    if empty:
        raise UserError(f"{path}: nothing is annotated in it: annotate a frame, or export the right task")


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """The border to what strangers wrote: whatever no reader foresaw is one line too."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path}: takes more memory than there is: export less at once") from None
    except Exception as error:
        raise UserError(
            f"{path}: could not be understood ({type(error).__name__}): export it anew, or report it with the file"
        ) from error


def _read(path: Path, reading: Reading) -> Iterator[ReturnedFrame]:
    files = ExportFiles(path)
    names = {PurePosixPath(name).name: name for name in files.names}
    if LABEL_MAP in names or any(f"{FOLDER}/" in name for name in files.names):
        if LABEL_MAP not in names:
            raise UserError(f"{path}: {FOLDER} without {LABEL_MAP}: export it anew, as Segmentation mask 1.1")
        return read_cvat_masks(files, reading)
    for suffix, read in ((".xml", read_cvat_images), (".json", read_label_studio)):
        of_kind = [name for name in files.names if name.lower().endswith(suffix)]
        if len(of_kind) > 1:
            raise UserError(f"{path}: {of_kind[0]} and {of_kind[1]} in one: give one export at a time")
        if of_kind:
            return read(files.read(of_kind[0], MAX_DOCUMENT), files.where(of_kind[0]), reading)
    return read_masks(files, reading)


def _line(frames: Sequence[ExpectedFrame], given: str) -> str:
    """The name of a frame that may be given by its id."""
    return next((frame.name for frame in frames if frame.id == given), given)
