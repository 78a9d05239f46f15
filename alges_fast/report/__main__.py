"""`python -m alges_fast.report OUT`: write the report of an existing run again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alges_fast import command
from alges_fast.report import write_report
from alges_fast.settings import Command, setting


@dataclass(frozen=True)
class OfRun:
    """Which report to write.

    Args:
        out: the --out folder of a run.
    """

    out: Path = setting(value="OUT", positional=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report of a run's folder again; the exit code: 0, or 2 for a folder that holds no run."""
    return command.main(REPORT, argv)


def _write(of: OfRun) -> int:
    write_report(of.out)
    print(of.out / "report.html")
    return 0


REPORT = Command(
    name="python -m alges_fast.report",
    config=OfRun,
    body=_write,
    about="Write a run's report again.",
    example="python -m alges_fast.report runs/first",
)


if __name__ == "__main__":
    sys.exit(main())
