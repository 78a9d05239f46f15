"""What the cache folder holds, decoded frames and features of frozen encoders: to look at, and to clear."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alges_fast import atomic
from alges_fast.errors import UserError

PREFIXES = {"features-": "features", "projection-": "projection", "pool-": "decoded pool"}
"""What entries hold by how their names begin; folders of other names are decoded data sets."""


@dataclass(frozen=True)
class Kept:
    """An entry of the cache folder.

    Attributes:
        made: when it was last written to, in seconds since 1970.
    """

    path: Path
    kind: str
    n_bytes: int
    made: float

    @property
    def day(self) -> str:
        return time.strftime("%Y-%m-%d", time.localtime(self.made))


def kept_in(folder: Path) -> list[Kept]:
    """The entries of a cache folder, largest first, drafts that killed processes left among them. None in no folder."""
    if not folder.is_dir():
        return []
    found = [Kept(path, _kind(path), *_measured(path)) for path in folder.iterdir() if _is_entry(path)]
    return sorted(found, key=lambda kept: (-kept.n_bytes, kept.path.name))


def clear(folder: Path, names: Sequence[str] | None = None) -> list[Kept]:
    """Delete entries, all or those of these names, and give them back; none that a process is making now.

    Raises:
        UserError: there is no entry of a name, or one cannot be deleted.
    """
    entries = kept_in(folder)
    if unknown := [name for name in names or () if name not in {kept.path.name for kept in entries}]:
        raise UserError(f"{folder}: holds no {unknown[0]}: see python -m alges_fast.data cache")
    gone = []
    for kept in entries:
        if names is not None and kept.path.name not in names:
            continue
        whole = kept.path.name.removesuffix(".draft")
        with atomic.locked(folder / f"{whole}.lock", wait=False) as alone:
            if not alone:
                continue
            try:
                shutil.rmtree(kept.path) if kept.path.is_dir() else kept.path.unlink()
            except OSError as error:
                raise UserError(f"{kept.path}: cannot be deleted ({error.strerror}): check its permissions") from None
        gone.append(kept)
    return gone


def _is_entry(path: Path) -> bool:
    """Locks stay: a process may be waiting at one."""
    if path.is_dir():
        return (path / "index.json").exists() or path.suffix in (".draft", ".damaged")
    return path.suffix != ".lock" and path.name.startswith(tuple(PREFIXES))


def _kind(path: Path) -> str:
    what = next((kind for prefix, kind in PREFIXES.items() if path.name.startswith(prefix)), "decoded frames")
    return f"{what}, unfinished" if path.suffix in (".draft", ".damaged") else what


def _measured(path: Path) -> tuple[int, float]:
    """Bytes, and the time of the last change."""
    states = [file.stat() for file in _files(path)]
    return sum(state.st_size for state in states), max((state.st_mtime for state in states), default=0.0)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from (file for file in path.rglob("*") if file.is_file())
