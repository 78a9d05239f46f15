"""What callers of `embed_pool` may want to tell from other mistakes."""

from __future__ import annotations

from pathlib import Path


class CannotContinue(ValueError):
    """What is at `out` is no beginning of this call's rows: of something else, damaged, or of a pool without an order.

    Attributes:
        reason: what is wrong, without the remedy that the message ends with.
        path: the file; None where the pool is what is wrong.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        super().__init__(f"{reason}; resume=False begins anew")
        self.reason = reason
        self.path = path


class FileInUse(ValueError):
    """Another process is writing the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"out: another process is writing {path}; give every process, and every rank, a file of its own"
        )
        self.path = path


class RowsNotWritten(OSError):
    """The rows at `filename` could not be written: `strerror` says why; what is there can be gone on with."""

    def __str__(self) -> str:
        return f"{super().__str__()}; resume=True continues from here"
