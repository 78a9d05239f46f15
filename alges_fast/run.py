"""Run an active-learning experiment: `python -m alges_fast.run`, `--help` for what can be set.

With no arguments: the demo, three strategies on synthetic surgical video, in minutes on two cores.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alges_fast._native import cpu_kernels, native_status
from alges_fast.command import bracketed, keep_freed_memory, one_line, refused
from alges_fast.config import PRESETS, RunConfig
from alges_fast.errors import UserError
from alges_fast.experiment import Monitor, lost_process, run_experiment
from alges_fast.report.console import summary_table

LISTS = ("--strategies", "--seeds")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print the table.

    The exit code: 0, 1 where another process of the job has died, 2 for a user's mistake, 130 when interrupted.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    keep_freed_memory()
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the loaders have a lower limit
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        leads = int(os.environ.get("RANK", "0")) == 0
        console = Console(quiet=not leads, highlight=False, soft_wrap=True)
        if cpu_kernels() is None:
            console.print(escape(native_status()))
        with RichMonitor(console) as monitor:
            rows = run_experiment(config, monitor)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a disk that fills or a folder that goes away under a file of the report or the cache
        print(f"error: {error}: make it writable or choose another --out, then run again", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not lost_process(error):
            raise
        print("error: another process of this job has stopped; the same command continues the run", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        return 130
    if leads:
        console.print(summary_table(rows))
        console.print(f"results: {config.out}/results.csv   report: {config.out}/report.html")
    return 0


def parse(argv: Sequence[str]) -> RunConfig:
    """A configuration from flags, over a YAML file, over a preset, over RunConfig's defaults.

    Raises:
        UserError: a flag, key or value that does not exist; one line.
    """
    arguments = bracketed(argv, LISTS)
    parser = _parser()
    parser.set_defaults(dict(PRESETS[_preset(arguments)]))
    try:
        parsed = parser.parse_args(arguments)
    except jsonargparse.ArgumentError as error:
        raise refused(error, RunConfig) from error
    values = {name: value for name, value in parsed.clone(with_meta=False).as_dict().items() if name != "config"}
    return RunConfig(**{**values, "strategies": tuple(values["strategies"]), "seeds": tuple(values["seeds"])})


class RichMonitor(Monitor):
    """A progress bar with the time left, and a line per finished round."""

    def __init__(self, console: Console) -> None:
        text = TextColumn("{task.description}")
        columns = (text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(compact=True))
        self.console = console
        self.progress = Progress(*columns, console=console, transient=True, speed_estimate_period=300)
        self.task = self.progress.add_task("loading", total=None)

    def __enter__(self) -> RichMonitor:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def start(self, work: float) -> None:
        self.progress.reset(self.task, total=work)

    def advance(self, work: float) -> None:
        self.progress.advance(self.task, work)

    def doing(self, what: str) -> None:
        self.progress.update(self.task, description=escape(what))

    def note(self, line: str) -> None:
        self.console.print(escape(line))

    def loading(self, done: int, total: int) -> None:
        self.progress.update(self.task, description="loading frames", completed=done, total=total)


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog="python -m alges_fast.run",
        description=(
            "Active-learning experiment for semantic segmentation. Without arguments: the demo. Results, a table and a "
            "report go to --out; the same command again continues what is there."
        ),
        exit_on_error=False,
        allow_abbrev=False,  # an abbreviated --preset would be read after the defaults that it names
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags override it.")
    parser.add_class_arguments(RunConfig, fail_untyped=True)
    return parser


def _preset(arguments: Sequence[str]) -> str:
    """The preset that flags, or else the YAML file, name: its values must be known before either is read."""
    found: dict[str, Any] = {"--preset": None, "--config": None}
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in found and (equals or position + 1 < len(arguments)):
            found[flag] = value if equals else arguments[position + 1]
    preset = found["--preset"]
    if preset is None and found["--config"] is not None:
        path = Path(found["--config"])
        try:
            settings = yaml.safe_load(path.read_text())
        except OSError as error:
            raise UserError(f"--config {path}: {error.strerror}; give a YAML file") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path} is not a YAML file: {one_line(str(error))}") from error
        preset = settings.get("preset") if isinstance(settings, dict) else None
    preset = "demo" if preset is None else preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UserError(f"--preset {preset} is unknown: use {', '.join(PRESETS)}")
    return preset


if __name__ == "__main__":
    sys.exit(main())
