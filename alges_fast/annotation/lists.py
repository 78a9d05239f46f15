"""What the user gave beside the pool: what is labelled, what was refused, the classes' names and weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from alges_fast.annotation.exports import ANNOTATE
from alges_fast.annotation.sources import LeftOut, PoolFrame
from alges_fast.data.files import IMAGE_SUFFIXES, read_lines
from alges_fast.errors import UserError
from alges_fast.windows import Window, named


def with_labelled(
    frames: Sequence[PoolFrame], source: str | None, left_out: LeftOut
) -> tuple[list[PoolFrame], list[str | Window]]:
    """The pool's frames with pictures from elsewhere that a text list names, and what it says is labelled.

    Args:
        source: the list's file: an id, a picture's path or a window, as picks.csv names it, a line; None for nothing.
        left_out: what of the pool cannot be used: the list may name it.

    Raises:
        UserError: a line that is none of these.
    """
    if source is None:
        return [*frames], []
    ids = {frame.id for frame in frames}
    ids_of_paths = {frame.path.resolve(): frame.id for frame in frames if frame.timestamp is None}
    added: dict[str, PoolFrame] = {}
    labelled: list[str | Window] = []
    for line in read_lines(source, "--labelled"):
        path = next((p for p in (Path(source).parent / line, Path(line)) if p.is_file()), None)
        window = None if line in ids or path is not None else window_named(line, ids)
        if window is not None:
            labelled.append(window)
        elif line in ids:
            labelled.append(line)
        elif path is not None and path.resolve() in ids_of_paths:
            labelled.append(ids_of_paths[path.resolve()])
        elif path is not None and path.suffix.lower() in IMAGE_SUFFIXES:
            added[path.as_posix()] = PoolFrame(path.as_posix(), path.parent.as_posix(), math.inf, path)
        elif left_out.has(line):
            continue
        else:
            raise UserError(f"{source}: {line} is neither an id of the pool nor a picture: correct the list")
    return [*frames, *added.values()], list(dict.fromkeys([*labelled, *added]))


def refused_among(
    ids: Collection[str], lines: Sequence[str], left_out: LeftOut, *, windows: bool, source: str
) -> list[str | Window]:
    """What lines refuse: ids of frames and, where windows are chosen, windows.

    Raises:
        UserError: a line that is neither; it names the source.
    """
    refused: list[str | Window] = []
    for line in lines:
        item = line if line in ids or not windows else window_named(line, ids)
        if left_out.has(line):
            continue
        if item is None or (isinstance(item, str) and item not in ids):
            raise UserError(f"{source}: {line} is no id of the pool: give ids as picks.csv has them")
        refused.append(item)
    return refused


def window_named(line: str, ids: Collection[str]) -> Window | None:
    """The window that `str(window)` names, if it is of one of these frames."""
    window = named(line)
    return window if isinstance(window, Window) and window.id in ids else None


def class_names(given: str | None, n_classes: int | None, *, windows: bool) -> list[str]:
    """The names that --classes gives, a text list's path or names with commas between, or "class 0", "class 1", ...

    Without a model `n_classes` is None: as many as are given, and none by default.

    Raises:
        UserError: not a different name for each class, or with windows one that they need themselves.
    """
    if given is None:
        return [f"class {k}" for k in range(n_classes or 0)]
    # os.path, which takes a list too long for a file's name for no file; pathlib raises.
    names = read_lines(given, "--classes") if os.path.isfile(given) else [name.strip() for name in given.split(",")]
    wanted = len(names) if n_classes is None else n_classes
    if len(names) != wanted or len(set(names)) < len(names):
        who = "there are" if n_classes is None else "the model has"
        raise UserError(
            f"--classes {given}: {len(set(names))} different names, but {who} {wanted} classes: give one for each, in "
            "the order of its ids"
        )
    if windows and ANNOTATE in names:
        raise UserError(f"--classes: {ANNOTATE!r} is what --regions labels the windows to annotate: rename the class")
    return names


def class_weights(given: str | None, classes: Sequence[str]) -> list[float] | None:
    """A factor per class from --class_weights, numbers with commas between or a JSON mapping by name.

    Raises:
        UserError: neither, or a name of no class.
    """
    if given is None:
        return None
    try:
        if not given.lstrip().startswith("{"):
            return [float(value) for value in given.split(",")]
        factors = json.loads(given)
        unknown = [name for name in factors if name not in classes]
        if unknown:
            raise UserError(f"--class_weights: no class {unknown[0]!r}: use {', '.join(classes)}")
        return [float(factors.get(name, 1)) for name in classes]
    except (ValueError, TypeError):
        raise UserError(f'--class_weights {given}: give numbers like 1,1,10 or JSON like {{"polyp": 10}}') from None
