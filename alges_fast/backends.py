"""Which of an operation's backends runs: the one that a caller names, or the first that can."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)


def check_backend(backend: str | None, known: Sequence[str]) -> None:
    """That a backend is one of those known, or None. Raises ValueError: it is neither."""
    if backend is not None and backend not in known:
        raise ValueError(f"backend: unknown name {backend!r}; choose from {', '.join(known)}")


def choose_backend(
    requested: str | None, preferred: Sequence[str], reason: Callable[[str], str | None]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The backend to run, and those preferred to it with the reason each was passed over.

    Args:
        requested: a backend's name, or None for the first that can.
        preferred: backends to try, best first; one of them runs everything.
        reason: of a backend's name, why it cannot run this call, or None.

    Raises:
        ValueError: the requested backend cannot run.
    """
    if requested is not None:
        why = reason(requested)
        if why is not None:
            raise ValueError(f"backend={requested!r} cannot run this call: {why}")
        return requested, ()
    passed_over: list[tuple[str, str]] = []
    for name in preferred:
        why = reason(name)
        if why is None:
            return name, tuple(passed_over)
        passed_over.append((name, why))
    raise AssertionError(f"none of {', '.join(preferred)} runs everything")


def say_what_was_passed_over(operation: str, chosen: str, passed_over: Sequence[tuple[str, str]]) -> None:
    """Warn, once each, of backends that were preferred to the chosen one and cannot run."""
    for name, why in passed_over:
        _say_once(f"{operation}: {chosen} runs instead of {name}: {why}")


@functools.lru_cache(maxsize=256)
def _say_once(message: str) -> None:
    logger.warning(message)
