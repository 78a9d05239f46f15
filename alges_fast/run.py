# PYTHON_ARGCOMPLETE_OK
"""Run an active-learning experiment: `python -m alges_fast.run`, `--help` for what can be set.

With no arguments: the demo, windows against whole frames on synthetic surgical video, in minutes on two cores.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

import jsonargparse
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alges_fast._native import cpu_kernels, native_status
from alges_fast.command import arguments_of, expand_home, help_shown, keep_freed_memory, refused, run_command
from alges_fast.experiment import Monitor, run_experiment
from alges_fast.experiment.config import RunConfig, preset_values
from alges_fast.job import leads_job
from alges_fast.report.console import summary_table

HELP = """\
usage: python -m alges_fast.run [--SETTING VALUE ...]

Compare strategies of active learning on labelled data. Without settings: the
demo, minutes on two cores. A table, results.csv and report.html go to --out;
the same command again goes on where it stopped.

  --preset NAME         demo, camvid, paper or none: defaults for all others;
                        demo, unless you name data, a network or its training
  --dataset NAME        synthetic, cholecseg8k, m2caiseg or folder
  --data_root DIR       where its files are
  --strategies A,B,..   random,alges-img,.., or your own: path/to/file.py:Class
  --regions none,4x4    whole frames, windows of frames, or both
  --seeds 0,1,2         repetitions
  --rounds 4 --init_size 10 --query_size 10
  --architecture unet   or any other of smp's; frozen trains in seconds
  --device auto         or cpu, cuda
  --out DIR             one configuration a folder

example:
  python -m alges_fast.run --dataset folder --data_root DIR --regions 16x16 \\
      --strategies random,alges-effort --architecture frozen --out runs/first

All settings: --help all. More: docs/experiments.md, docs/strategies.md
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print the table.

    The exit code: 0, 1 where another process of the job has died, 2 for a user's mistake, 130 when interrupted.
    """
    given = sys.argv[1:] if argv is None else argv
    if help_shown(given, HELP, _parser):
        return 0
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    keep_freed_memory()
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the loaders have a lower limit
    return run_command(
        lambda: _run(parse(given)),
        if_out_of_memory="lower --image_size or --batch_size, which is another configuration and wants another --out",
    )


def _run(config: RunConfig) -> int:
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


def parse(argv: Sequence[str]) -> RunConfig:
    """A configuration from flags, over a YAML file, over a preset, over RunConfig's defaults.

    Raises:
        UserError: a flag, key or value that does not exist; one line.
    """
    arguments = arguments_of(argv, RunConfig)
    parser = _parser()
    parser.set_defaults(preset_values(_given(arguments)))
    try:
        parsed = parser.parse_args(arguments)
    except jsonargparse.ArgumentError as error:
        raise refused(error, RunConfig) from error
    values = {name: value for name, value in parsed.clone(with_meta=False).as_dict().items() if name != "config"}
    lists = {name: tuple(values[name]) for name in ("strategies", "regions", "seeds")}
    return expand_home(RunConfig(**{**values, **lists}))


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

    def preparing(self, what: str, done: int, total: int) -> None:
        self.progress.update(self.task, description=what, completed=done, total=total)


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


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """The settings among the flags, by name, each as it is given last: the defaults of the others depend on them."""
    given = {}
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            given[flag.removeprefix("--")] = value if equals else "".join(arguments[position + 1 : position + 2])
    return given


if __name__ == "__main__":
    sys.exit(main())
