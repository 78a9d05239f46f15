# PYTHON_ARGCOMPLETE_OK
"""`python -m alges_fast.data`: look a data set over before a run, write the synthetic one to disk, clear the cache."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from alges_fast.cache_folder import default_cache_dir
from alges_fast.command import complete, run_command
from alges_fast.data.export import write_cholecseg8k
from alges_fast.data.files import SPLITS, Faults, Listing
from alges_fast.data.kept import clear, kept_in
from alges_fast.data.loading import FILE_DATASETS, Survey, class_names, list_tree, read_all
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

HELP = """\
usage: python -m alges_fast.data {check,write-synthetic,cache} ...

Look a data set over before a run, or write the synthetic one to disk.

  check ROOT        reads every image and mask once, changes nothing, and lists
                    the frames of each video, the share of each class in each
                    split and every fault; exit code 0 if a run can use the
                    tree as it is, 2 if not
  write-synthetic ROOT --layout cholecseg8k
                    draws seventeen videos of synthetic surgery into ROOT: 540
                    frames, 8080 with --full
  cache             lists what is kept between runs, and where; --clear deletes
                    it. All of it is made again when it is needed

example:
  python -m alges_fast.data write-synthetic surgery --layout cholecseg8k
  python -m alges_fast.data check surgery

What ROOT holds: check --help. More: docs/data.md
"""

ROOT_HOLDS = """\
What ROOT holds, by data set:

  cholecseg8k   videoNN/videoNN_SSSSS/frame_<n>_endo.png
                videoNN/videoNN_SSSSS/frame_<n>_endo_watershed_mask.png
  m2caiseg      {train,trainval,test}/images/<stem>.jpg
                {train,trainval,test}/groundtruth/<stem>_gt.png
  folder        {train,val,test}/images/<stem>.png or .jpg
                {train,val,test}/masks/<stem>.png, pixel values are class ids
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; the exit code: 0, or 2 for an unusable tree or a user's mistake."""
    complete(_parser())
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _run(options: argparse.Namespace) -> int:
    console = Console()
    if options.command == "check":
        return check(options.root, options.dataset, options.split, options.ignore_index, console)
    if options.command == "cache":
        return show_cache(options.names, options.clear, console)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("drawing")
        written = write_cholecseg8k(
            options.root,
            full=options.full,
            seed=options.seed,
            height=options.height,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{written} frames written to {escape(str(options.root))}; next:", highlight=False)
    console.print(f"  python -m alges_fast.data check {escape(str(options.root))}", highlight=False)
    return 0


def check(root: Path, dataset: str | None, split: str | None, ignore_index: int | None, console: Console) -> int:
    """Read a whole tree and report on it; 0 if it is usable as it is, 2 if not. Raises UserError if there is none."""
    name = dataset or guess_dataset(root)
    faults = Faults("skip")
    listing = list_tree(name, root, split, ignore_index, faults)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading")
        survey = read_all(listing, faults, 32, None, lambda done, total: bar.update(task, completed=done, total=total))
    beyond_skipping = [
        f"{root}: the {part} split has no usable frame" for part in SPLITS if not any(survey.pixels[part])
    ]
    try:
        classes = dict(enumerate(class_names(listing, survey)))
    except UserError as error:
        beyond_skipping.append(str(error))
        classes = {value: "?" for value in range(UNLABELLED) if any(survey.pixels[part][value] for part in SPLITS)}

    console.print(name if dataset else f"{name} (by its folders; --dataset says otherwise)", highlight=False)
    console.print(_videos_table(listing))
    console.print(_shares_table(classes, survey))
    for note in (*listing.notes, *survey.notes()):
        console.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)
    for problem in (*survey.faults, *beyond_skipping):
        console.print(f"[red]fault:[/red] {escape(problem)}", highlight=False, soft_wrap=True)
    if beyond_skipping:
        console.print("[red]not usable[/red]: mend these faults first")
    elif survey.faults:
        remedy = "mend these faults, or run with --on_bad_image skip, which leaves the frames out"
        console.print(f"[red]not usable as it is[/red]: {remedy}", soft_wrap=True)
    else:
        flags = {"--dataset": name, "--data_root": root, "--split": split, "--ignore_index": ignore_index}
        given = " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)
        console.print("[green]usable[/green]: a run can read this tree as it is; for example")
        console.print(f"  python -m alges_fast.run {escape(given)} --out runs/first", highlight=False, soft_wrap=True)
    return 2 if beyond_skipping or survey.faults else 0


def show_cache(names: list[str], clearing: bool, console: Console) -> int:
    """List what the cache holds, or delete it. Raises UserError where a name is of nothing."""
    folder = default_cache_dir()
    if names and not clearing:
        raise UserError(f"{names[0]}: names are for --clear")
    entries = clear(folder, names or None) if clearing else kept_in(folder)
    table = Table("name", "holds", "MB", "made")
    for kept in entries:
        table.add_row(escape(kept.path.name), kept.kind, f"{kept.n_bytes / 1e6:.1f}", kept.day)
    table.columns[2].justify = "right"
    if entries:
        console.print(table)
    total = sum(kept.n_bytes for kept in entries) / 1e9
    what = "deleted from" if clearing else "in"
    console.print(f"{total:.2f} GB {what} {escape(str(folder))}", highlight=False, soft_wrap=True)
    return 0


def guess_dataset(root: Path) -> str:
    """Which of FILE_DATASETS a tree looks like. Raises UserError where it looks like none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: give the folder of a data set")
    if name := _looks_like(root):
        return name
    below = next((path for path in sorted(root.iterdir()) if path.is_dir() and _looks_like(path)), None)
    remedy = f"give {below}, which does" if below else "see check --help for what their folders hold"
    raise UserError(f"{root}: looks like none of {', '.join(FILE_DATASETS)}: {remedy}")


def _looks_like(root: Path) -> str | None:
    signs = {"cholecseg8k": "video[0-9][0-9]/", "m2caiseg": "*/groundtruth/", "folder": "*/masks/"}
    return next((name for name, sign in signs.items() if any(root.glob(sign))), None)


def _videos_table(listing: Listing) -> Table:
    table = Table("video", "split", "clips", "frames", title="frames per video", title_justify="left")
    for part in SPLITS:
        files = listing.splits[part]
        frames = Counter(file.video for file in files)
        for video, count in frames.items():
            clips = len({file.clip for file in files if file.video == video})
            table.add_row(escape(video), part, str(clips), str(count))
        table.add_section()
    table.add_row("all", "", "", str(sum(len(files) for files in listing.splits.values())))
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _shares_table(classes: dict[int, str], survey: Survey) -> Table:
    table = Table("id", "class", *SPLITS, title="share of all pixels, %", title_justify="left")
    for value, name in [*classes.items(), (UNLABELLED, "not labelled")]:
        shares = (100 * survey.pixels[part][value] / max(1, sum(survey.pixels[part])) for part in SPLITS)
        table.add_row(str(value), escape(name), *(f"{share:.2f}" if share else "-" for share in shares))
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m alges_fast.data")
    parser.format_help = lambda: HELP  # type: ignore[method-assign]
    commands = parser.add_subparsers(dest="command", required=True, metavar="{check,write-synthetic,cache}")
    looking = commands.add_parser(
        "check",
        help="report on a tree: frames, class shares, faults, whether it is usable",
        epilog=ROOT_HOLDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    looking.add_argument("root", type=Path, metavar="ROOT")
    looking.add_argument("--dataset", choices=FILE_DATASETS, help="default: told from the folders")
    looking.add_argument("--split", help="cholecseg8k only: alges (default) or endovit")
    looking.add_argument("--ignore_index", type=int, help="folder only: mask value that is not labelled")
    caching = commands.add_parser("cache", help="what is kept between runs; --clear deletes it")
    caching.add_argument("names", nargs="*", metavar="NAME", help="with --clear: only these")
    caching.add_argument("--clear", action="store_true", help="delete instead of listing")
    writing = commands.add_parser("write-synthetic", help="write synthetic video in a real data set's layout")
    writing.add_argument("root", type=Path, metavar="ROOT", help="a new or empty folder")
    writing.add_argument("--layout", choices=("cholecseg8k",), required=True)
    writing.add_argument("--full", action="store_true", help="all 8080 frames instead of the demonstration's 540")
    writing.add_argument("--seed", type=int, default=0)
    writing.add_argument("--height", type=int, default=480, help="of the frames, 16:9 (default: 480, so 854 wide)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
