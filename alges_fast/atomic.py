"""Files that are there whole or not at all, whenever the process or the machine stops; locks that end with it."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, BinaryIO

from alges_fast.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

FLUSHED_AT_ONCE = 16
"""Files: 250 small ones took 1.4 s one by one, .14 s so, .20 s with twice as many (ext4)."""


def write_bytes(path: Path, contents: bytes) -> None:
    """Write to a draft beside path, flush it to the disk and rename it. Makes the folder.

    The draft's name is fixed, so that one left by a killed process goes when the file is written again. Processes that
    may write one file at a time need `locked`.

    Raises:
        UserError: the file cannot be written (disk full, folder not writable); what was there before is untouched.
    """
    with written_together() as write:
        write(path, contents)


@contextlib.contextmanager
def written_together() -> Iterator[Callable[[Path, bytes], None]]:
    """Gives what writes a file as `write_bytes` does, by any thread, but for the name: all have it when the block ends.

    Hundreds of files are flushed many at once, which takes a tenth of the time of one after the other. Where the block
    fails, none is written.
    """
    drafts: dict[Path, Path] = {}

    def write(path: Path, contents: bytes) -> None:
        drafts[path] = draft = path.with_name(f".{path.name}.draft")
        write_draft(draft, contents, named=path)

    try:
        yield write
        _flush_all(drafts)
        for path, draft in drafts.items():
            with _naming(path):
                draft.replace(path)
    except BaseException:
        for draft in drafts.values():
            with contextlib.suppress(OSError):
                draft.unlink()
        raise
    for folder in {path.parent for path in drafts}:
        flush_folder(folder)


def write_draft(path: Path, contents: bytes, *, named: Path | None = None) -> None:
    """Write a file that a power cut may lose until it has its name, or its folder has (`move_folder`).

    Raises:
        UserError: it cannot be written; `named`, by default `path`, is what the message calls it.
    """
    with _naming(named or path):
        make_folder(path.parent)
        with new_file(path) as file:
            file.write(contents)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of JSON with sorted keys, so equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def new_file(path: Path) -> BinaryIO:
    """A file of our own to write: what has its name goes first, and a link is never followed to what it points to."""
    path.unlink(missing_ok=True)
    return path.open("xb")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, so that they too survive a power cut. Raises UserError where a
    file has the name of one, OSError where it cannot be made."""
    missing, there = [], folder
    while not there.is_dir():
        missing.append(there)
        there = there.parent
    for path in reversed(missing):
        try:
            path.mkdir(exist_ok=True)
        except FileExistsError:
            whole = "" if path == folder else f"{folder}: "
            raise UserError(f"{whole}{path} is a file, where a folder should be: choose another folder") from None
        flush_folder(path.parent)


def move_folder(draft: Path, folder: Path) -> None:
    """Flush what is in a folder that is whole, and give it its name, for good. What had it is removed; until then
    `restore_folder` finds it."""
    _flush_all({path: path for path in draft.rglob("*") if path.is_file()})
    for inside in [path for path in draft.rglob("*") if path.is_dir()]:
        flush_folder(inside)
    flush_folder(draft)
    make_folder(folder.parent)
    before = _before(folder)
    if folder.exists():
        folder.rename(before)
    draft.rename(folder)
    flush_folder(folder.parent)
    remove_draft(before)


def restore_folder(folder: Path) -> None:
    """Finish, or undo, what a killed process left of a `move_folder` in the place of another."""
    before = _before(folder)
    if before.exists() and not folder.exists():
        before.rename(folder)
    remove_draft(before)


def _before(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")


def remove_draft(folder: Path) -> None:
    """Remove a folder that a killed process left half made; of a link, the link."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def folds_case(folder: Path) -> bool:
    """Whether a folder, or the place where it will be, takes `A` and `a` for one name."""
    while not folder.exists():
        folder = folder.parent
    for path in [*folder.iterdir(), folder.resolve()]:
        other = path.with_name(path.name.swapcase()) if path.name else path
        if other.name != path.name:
            return other.exists() and other.samefile(path)
    return False


def lock(file: IO[Any], *, wait: bool = True, inherited: bool = True) -> bool | None:
    """Lock a file that is open for writing until it is closed or the process ends, however that comes about.

    Args:
        wait: for a process that has the lock.
        inherited: whether processes forked from this one hold the lock with the file, so that it also lasts until they
            have ended; it keeps two handles of one process apart. Where not, it ends with the first handle of the file
            that the process closes.

    Returns:
        Whether this process has it; None on a system or a file system without locks, which is said once.
    """
    if fcntl is None:
        _no_locks(str(Path(file.name).parent))
        return None
    take = fcntl.flock if inherited else fcntl.lockf
    try:
        take(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        _no_locks(str(Path(file.name).parent))
        return None
    return True


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock at path, a file that is made; False if another process has it and `wait` is False.

    On a file system without locks everybody gets it, and is told so. What the file holds is left alone.

    Raises:
        UserError: the file cannot be made, or is a link or anything else that no lock is.
    """
    with contextlib.ExitStack() as stack:
        try:
            make_folder(path.parent)
            file = stack.enter_context(open(path, "ab", buffering=0, opener=_not_through_a_link))
        except OSError as error:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise UserError(f"{path}: a link or a pipe where a lock should be: remove it") from None
            raise _unwritable(path, error) from error
        yield lock(file, wait=wait) is not False


def _not_through_a_link(path: str, flags: int) -> int:
    """An opener; a pipe that nobody reads is an error too, where opening it would wait for ever."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


@functools.cache
def _no_locks(folder: str) -> None:
    logging.getLogger(__name__).warning("%s: no locks on this file system: start one process at a time there", folder)


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    mend = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
    return UserError(f"{path} cannot be written ({reason}): {mend}, or choose another folder, then run again")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raises UserError where the file at path cannot be written."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def _flush_all(drafts: Mapping[Path, Path]) -> None:
    """Flush files to the disk, by the path that an error is told of: many at once, as a disk takes them together."""

    def flush(path: Path) -> None:
        with _naming(path), drafts[path].open("r+b") as file:
            os.fsync(file.fileno())

    if len(drafts) == 1:
        flush(*drafts)
    elif drafts:
        with ThreadPoolExecutor(min(len(drafts), FLUSHED_AT_ONCE)) as executor:
            list(executor.map(flush, drafts))


def flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut; not every file system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
