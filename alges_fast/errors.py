"""The one error that is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what a command-line user gave: one line that names the thing and the remedy.

    The commands print it alone, without a traceback, and exit with code 2.
    """
