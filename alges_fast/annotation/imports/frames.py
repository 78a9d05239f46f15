"""What is expected back, what came back, and which of the expected frames a name in an export means."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from alges_fast.annotation.exports import ALL, AS_DRAWN, AS_PREDICTED, REFUSE, answers, suffix_of
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window


@dataclass(frozen=True)
class ExpectedFrame:
    """A frame that may come back.

    id: of the frame.
    name: its path in the files that went out, with forward slashes.
    size: height and width.
    windows: what was to be annotated of it; empty for all of it.
    """

    id: str
    name: str
    size: tuple[int, int]
    windows: Sequence[Window] = ()


@dataclass(frozen=True, eq=False)
class ReturnedFrame:
    """A frame as a person gave it back.

    id: of the frame.
    mask: (H, W) uint8 class ids, UNLABELLED where nothing is drawn and outside of the windows.
    windows: those of the frame with at least one labelled pixel; empty where all of it was to be annotated.
    refused: whether the annotator refused it; nothing of its mask is labelled then.
    refused_windows: those that the annotator refused, of a frame that is not refused.
    answered: those of `windows` whose label is the annotator's word, and not a drawing: they need not differ from what
        was predicted.
    outside: how many pixels were drawn outside of the windows, and dropped.
    seconds: how long the annotator had it open, where the tool says so.
    """

    id: str
    mask: NDArray[np.uint8]
    windows: Sequence[Window] = ()
    refused: bool = False
    refused_windows: Sequence[Window] = ()
    answered: Sequence[Window] = ()
    outside: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Reading:
    """What every reader needs to know.

    frames: what may come back.
    classes: their names in the order of their ids.
    background: id of the class of pixels under no shape; UNLABELLED for none.
    palette: colour -> class id, for masks of colours that bring no list of their own.
    finished: ids of the frames to take; None for all that something is drawn in.
    """

    frames: Sequence[ExpectedFrame]
    classes: Sequence[str]
    background: int = UNLABELLED
    palette: dict[tuple[int, int, int], int] | None = None
    finished: frozenset[str] | None = None

    @cached_property
    def _by_end(self) -> dict[str, list[ExpectedFrame]]:
        return self._index(_plain)

    @cached_property
    def _by_stem(self) -> dict[str, list[ExpectedFrame]]:
        return self._index(_stem)

    def _index(self, spelling: Callable[[str], str]) -> dict[str, list[ExpectedFrame]]:
        frames: dict[str, list[ExpectedFrame]] = {}
        for frame in self.frames:
            for end in _ends(spelling(frame.name)):
                frames.setdefault(end, []).append(frame)
        return frames

    def frame(self, name: str, where: str, *, stem: bool = False) -> ExpectedFrame:
        """The frame that `name` means: tools put folders before it and leave some away; with `stem` also its extension.

        Raises:
            UserError: none, or more than one; `where` begins the line.
        """
        whole = _plain(name)
        for end in _ends(whole):  # the longest first
            for spelling in (_plain, _stem)[: 2 if stem else 1]:
                found = (self._by_end if spelling is _plain else self._by_stem).get(end, [])
                exact = [frame for frame in found if spelling(frame.name) == end]
                # What folders were put before must be a whole name; of the whole of what is given an end is enough.
                found = exact or (found if end == whole else [])
                if len(found) > 1:
                    raise UserError(
                        f"{where}: {name} may be {found[0].name} or {found[1].name}: give its folder and extension too"
                    )
                if found:
                    return found[0]
        raise UserError(f"{where}: {name} is no frame that went out: remove it from the export")

    def new_frame(self, name: str, where: str, seen: set[str], *, stem: bool = False) -> ExpectedFrame:
        """The same, of a name that means none of the frames seen so far, to which it is added. Raises UserError."""
        frame = self.frame(name, where, stem=stem)
        if frame.id in seen:
            raise UserError(f"{where}: {frame.name} is there twice: export the tasks one by one, or remove one")
        seen.add(frame.id)
        return frame

    def class_id(self, name: str, where: str) -> int:
        """The id of a class. Raises UserError for an unknown name."""
        plain = unicodedata.normalize("NFC", name)
        for class_id, known in enumerate(self.classes):
            if unicodedata.normalize("NFC", known) == plain:
                return class_id
        raise UserError(f"{where}: class {name!r} is unknown: use {', '.join(self.classes)}")

    def returned(
        self,
        frame: ExpectedFrame,
        mask: NDArray[np.uint8],
        windows: Mapping[Window, str] = MappingProxyType({}),
        *,
        at: str,
        submitted: bool = False,
    ) -> ReturnedFrame | None:
        """A frame of which this was drawn; None where it is nothing, or the frame is not finished.

        Args:
            mask: UNLABELLED under no shape.
            windows: those that the file marks, and their answers (`exports.answers`). Of the windows that went out they
                say which are meant; where none went out they count themselves.
            at: begins the line of an error.
            submitted: whether the annotator said that the frame is done: with a background an empty frame then counts.

        Raises:
            UserError: an answer that is none.
        """
        if self.finished is not None and frame.id not in self.finished:
            return None
        done = self.background != UNLABELLED and (submitted or self.finished is not None)
        marked = [window for window in frame.windows if window in windows]
        parts = marked or frame.windows or list(windows)
        inside = np.full_like(mask, UNLABELLED)
        covered, answered, unwanted = [], [], []
        for part in parts or [Window(frame.id, 0, 0, frame.size[1], frame.size[0])]:
            box = part.box
            answer = windows.get(part, AS_DRAWN)
            if answer == REFUSE:
                unwanted.append(part)
                continue
            if answer.startswith(ALL):
                mask[box] = self.class_id(answer.removeprefix(ALL), at)
            elif answer not in (AS_DRAWN, AS_PREDICTED):
                raise UserError(f"{at}: {answer!r} is no answer for a window: use {', '.join(answers(self.classes))}")
            if done or (mask[box] != UNLABELLED).any():
                inside[box] = np.where(mask[box] == UNLABELLED, np.uint8(self.background), mask[box])
                covered.append(part)
                if answer != AS_DRAWN:
                    answered.append(part)
        if not covered and not unwanted:
            return None
        return ReturnedFrame(
            frame.id,
            inside,
            covered if parts else (),
            refused_windows=unwanted,
            answered=answered,
            outside=int((mask[inside == UNLABELLED] != UNLABELLED).sum()) if parts else 0,
        )


def refused(frame: ExpectedFrame) -> ReturnedFrame:
    """A frame that the annotator refused."""
    return ReturnedFrame(frame.id, np.full(frame.size, UNLABELLED, np.uint8), refused=True)


def check_size(frame: ExpectedFrame, width: int, height: int, at: str) -> None:
    """Raises UserError where something of this size came back for the frame, which `at` names."""
    if (height, width) != tuple(frame.size):
        raise UserError(
            f"{at}: {width} x {height} pixels, where {frame.size[1]} x {frame.size[0]} went out: annotate that frame"
        )


def _plain(name: str) -> str:
    """One spelling of a path: forward slashes, composed letters (a Mac's zip decomposes them)."""
    return unicodedata.normalize(
        "NFC", "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    )


def _ends(name: str) -> list[str]:
    """The path, then less and less of its folders."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _stem(name: str) -> str:
    plain = _plain(name)
    return plain.removesuffix(suffix_of(plain))
