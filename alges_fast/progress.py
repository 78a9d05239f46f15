"""What long work tells while it goes on."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is done, frames done, frames in all)."""


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""
