"""The one error that is the user's to mend, and how what strangers wrote is shown in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 2000


class UserError(Exception):
    """A mistake in what a command-line user gave: one line that names the thing and the remedy.

    The commands print it alone, without a traceback, and exit with code 2. Names and texts of files in it are shown by
    `printable`, so that none of them breaks the line, rules the terminal or fills it.
    """

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= _MOST else f"{text[: _MOST // 2]} … {text[-_MOST // 2 :]}"


def one_line(error: BaseException | str) -> str:
    """What an error of any library says, as part of a sentence; its type where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def nearest(name: str, known: Iterable[str], *, n: int = 3, cutoff: float = 0.6) -> str:
    """ " (nearest: a, b)", up to n known names that are spelled alike; empty where none is."""
    near = difflib.get_close_matches(name, list(known), n=n, cutoff=cutoff)
    return f" (nearest: {', '.join(near)})" if near else ""


def printable(text: str) -> str:
    """The text with an escape for every character that no terminal should be given: controls, line ends, half of a
    surrogate pair (a file's name that is no UTF-8), and what turns the direction of writing."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\u00a0\u3000" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()
