"""`python -m alges_fast.report OUT`: write the report of an existing run again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alges_fast.command import run_command
from alges_fast.report import write_report


def main(arguments: list[str] | None = None) -> int:
    """Write the report of a run's folder again; the exit code: 0, or 2 for a folder that holds no run."""
    parser = argparse.ArgumentParser(prog="python -m alges_fast.report", description="Write a run's report again.")
    parser.add_argument("out", type=Path, help="the --out folder of a run")
    return run_command(lambda: _write(parser.parse_args(arguments).out))


def _write(out: Path) -> int:
    write_report(out)
    print(out / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
