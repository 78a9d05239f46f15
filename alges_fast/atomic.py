"""Files that are there whole or not at all, whenever the process or the machine stops; locks that end with it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from alges_fast.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]


def write_bytes(path: Path, contents: bytes) -> None:
    """Write to a draft beside path, flush it to the disk and rename it. Makes the folder.

    The draft's name is fixed, so that one left by a killed process goes when the file is written again. Processes that
    may write one file at a time need `locked`.

    Raises:
        UserError: the file cannot be written (disk full, folder not writable); what was there before is untouched.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of JSON with sorted keys, so equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def lock(file: IO[Any], *, wait: bool = True, inherited: bool = True) -> bool | None:
    """Lock a file that is open for writing until it is closed or the process ends, however that comes about.

    Args:
        file: the open file.
        wait: for a process that has the lock.
        inherited: whether processes forked from this one hold the lock with the file, so that it also lasts until they
            have ended; it keeps two handles of one process apart. Where not, it ends with the first handle of the file
            that the process closes.

    Returns:
        Whether this process has it; None on a system or a file system without locks.
    """
    if fcntl is None:
        return None
    take = fcntl.flock if inherited else fcntl.lockf
    try:
        take(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock at path, a file that is made; False if another process has it and `wait` is False.

    On a file system without locks everybody gets it.

    Raises:
        UserError: the file cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w"))
        except OSError as error:
            raise _unwritable(path, error) from error
        yield lock(file, wait=wait) is not False


def _unwritable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    mend = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
    return UserError(f"{path} cannot be written ({reason}): {mend} or choose another --out, then run again")


def flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut; not every file system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
