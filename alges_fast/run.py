# PYTHON_ARGCOMPLETE_OK
"""Run an active-learning experiment: `python -m alges_fast.run`, `--help` for what can be set.

With no arguments: the demo, windows against whole frames on synthetic surgical video, in minutes on two cores.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alges_fast import command
from alges_fast._native import cpu_kernels, native_status
from alges_fast.experiment import Monitor, run_experiment
from alges_fast.experiment.config import RunConfig, preset_values
from alges_fast.job import leads_job
from alges_fast.report.console import summary_table
from alges_fast.settings import Command, read


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print the table.

    The exit code: 0, 1 where another process of the job has died, 2 for a user's mistake, 130 when interrupted.
    """
    return command.main(RUN, argv)


def parse(argv: Sequence[str]) -> RunConfig:
    """A configuration from flags, over a YAML file, over a preset, over RunConfig's defaults.

    Raises:
        UserError: a flag, key or value that does not exist; one line.
    """
    config: RunConfig = read(RUN, argv)
    return config


def _run(config: RunConfig) -> int:
    command.show_notes()
    command.keep_freed_memory()
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the loaders have a lower limit
    leads = leads_job()
    console = Console(quiet=not leads, highlight=False, soft_wrap=True)
    if cpu_kernels() is None:
        console.print(escape(native_status()))
    with RichMonitor(console) as monitor:
        rows = run_experiment(config, monitor)
    if leads:
        console.print(summary_table(rows, config.rounds))
        console.print(escape(f"results: {config.out}/results.csv   report: {config.out}/report.html"))
    return 0


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

    def preparing(self, what: str, done: int, total: int) -> None:
        self.progress.update(self.task, description=what, completed=done, total=total)


RUN = Command(
    name="python -m alges_fast.run",
    config=RunConfig,
    body=_run,
    about=(
        "Compare strategies of active learning on labelled data. Without settings: the demo, minutes on two cores. A "
        "table, results.csv and report.html go to --out; the same command again goes on where it stopped."
    ),
    example="""\
python -m alges_fast.run --dataset folder --data_root DIR --regions 16x16 \\
    --strategies random,alges-effort --architecture frozen --out runs/first""",
    more="docs/experiments.md, docs/strategies.md",
    defaults=preset_values,
    if_out_of_memory="lower --image_size or --batch_size, which is another configuration and wants another --out",
)


if __name__ == "__main__":
    sys.exit(main())
