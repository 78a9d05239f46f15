"""How a command runs and fails: one way for all of them."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Sequence

import torch

from alges_fast.errors import UserError
from alges_fast.job import LostProcess, is_first_to_fail, leads_job
from alges_fast.settings import Command, Family, complete, help_asked, read


def main(command: Command | Family, argv: Sequence[str] | None = None) -> int:
    """Answer --help and completion, or read a command's settings and do it; the exit code of `run_command`.

    Args:
        argv: what was typed after its name; by default of this process.
    """
    given = [*(sys.argv[1:] if argv is None else argv)]
    complete(command)

    def body() -> int:
        if (text := help_asked(command, given)) is not None:
            print(text, end="")
            return 0
        doing = command if isinstance(command, Command) else command.step(given)
        return doing.body(read(command, given))

    return run_command(body, if_out_of_memory=command.if_out_of_memory)


def show_notes(*, leads: bool = True) -> None:
    """Print the package's notes and warnings on stderr, of the first process of a job alone."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING if leads else logging.CRITICAL)
    if leads:
        logging.getLogger("alges_fast").setLevel(logging.INFO)


class TimeLeft:
    """Lines for what is being done, with the time that is left of it, from how it went since it began.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: tuple[str, int, float] = "", 0, 0.0  # what, how much of it was done then, and when that was
        self._done = 0

    def line(self, what: str, done: int, total: int) -> str:
        """Of a step, and of how many parts it has done how many."""
        name, at, since = self._begun
        if what != name or done < self._done:
            self._begun = name, at, since = what, done, self._clock()
        self._done = done
        seconds = self._clock() - since
        if done == at or seconds < SOON or done >= total:
            return f"{what} {done:,}/{total:,}"
        left = seconds / (done - at) * (total - done)
        unit, size = ("h", 3600.0) if left >= 5400 else ("min", 60.0) if left >= 90 else ("s", 1.0)
        return f"{what} {done:,}/{total:,}, about {max(left / size, 1):.0f} {unit} left"


SOON = 2.0
"""Seconds before which nothing is said of what is left."""


def run_command(body: Callable[[], int], *, if_out_of_memory: str = "run it on smaller images") -> int:
    """The exit code of a command: its body's, 2 for a user's mistake, 130 where it is interrupted, 1 where another
    process of its job has gone.

    What is the user's to mend is one line on stderr, without a traceback, of one process of a job; what is not is
    raised.

    Args:
        body: what the command does; its exit code.
        if_out_of_memory: what the user can do where there is too little memory.
    """
    code = 2
    try:
        return body()
    except LostProcess as error:
        code, said = 1, str(error)
    except UserError as error:
        said = str(error)
    except OSError as error:  # a disk that fills, or a folder that goes away
        said = f"{error}: make it readable, or writable if it is to be written, then run again"
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        said = f"out of memory: {if_out_of_memory}"
    except MemoryError:
        said = f"out of memory: {if_out_of_memory}"
    except KeyboardInterrupt:
        if leads_job():
            print("\nstopped; the same command continues", file=sys.stderr)
        return 130
    if is_first_to_fail():
        print(f"error: {said}", file=sys.stderr)
    return code


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next layer instead of returning it to the system and faulting it in again.

    Measured: a training step of U-Net with ResNet-18 on two cores takes 0.84 of its time at 224 pixels and 0.92 at 64,
    with the same peak of memory. It changes the whole process, so it is for commands only; `embed_pool`, which runs in
    a user's process, has a milder way of its own. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: blocks up to 32 MiB, the most that any glibc accepts
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap's end is not given back


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch has found no room for a tensor, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
