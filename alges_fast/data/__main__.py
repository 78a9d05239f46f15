# PYTHON_ARGCOMPLETE_OK
"""`python -m alges_fast.data`: look a data set over before a run, write the synthetic one to disk, clear the cache."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from alges_fast import command
from alges_fast.cache_folder import default_cache_dir
from alges_fast.data.export import write_cholecseg8k
from alges_fast.data.files import SPLITS, Faults, Listing
from alges_fast.data.kept import clear, kept_in
from alges_fast.data.layouts import LAYOUTS, list_tree
from alges_fast.data.loading import Survey, class_names, read_all
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.settings import Command, Family, setting


@dataclass(frozen=True)
class CheckSettings:
    """What to look over.

    Args:
        root: the folder of a data set. See below for what it holds.
        dataset: how the files lie; by default told from the folders.
        split: which videos go to which split, where a data set has several ways.
        ignore_index: mask value that is not labelled, for folder.
    """

    root: Path = setting(value="ROOT", positional=True, first=True)
    dataset: str | None = setting(None, "NAME", among=lambda: LAYOUTS)
    split: str | None = setting(None, "NAME")
    ignore_index: int | None = None


@dataclass(frozen=True)
class CacheSettings:
    """What of the cache to list or delete.

    Args:
        names: with --clear: only these.
        clear: delete instead of listing.
    """

    names: tuple[str, ...] = setting((), "NAME", positional=True)
    clear: bool = setting(False, first=True)


@dataclass(frozen=True)
class WriteSettings:
    """What to draw, and where to.

    Args:
        root: a new or empty folder.
        layout: whose folders and masks it has.
        full: all 8080 frames instead of the demonstration's 540.
        seed: fixes what is drawn.
        height: of the frames, 16:9.
    """

    root: Path = setting(value="ROOT", positional=True, first=True)
    layout: Literal["cholecseg8k"] = "cholecseg8k"
    full: bool = False
    seed: int = 0
    height: int = 480


def main(argv: Sequence[str] | None = None) -> int:
    """Run a step; the exit code: 0, or 2 for an unusable tree or a user's mistake."""
    return command.main(DATA, argv)


def write_synthetic(settings: WriteSettings) -> int:
    """Draw synthetic video into a folder."""
    console = Console()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("drawing")
        written = write_cholecseg8k(
            settings.root,
            full=settings.full,
            seed=settings.seed,
            height=settings.height,
            progress=lambda what, done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{written} frames written to {escape(str(settings.root))}; next:", highlight=False)
    console.print(f"  python -m alges_fast.data check {escape(str(settings.root))}", highlight=False)
    return 0


def check(settings: CheckSettings) -> int:
    """Read a whole tree and report on it; 0 if it is usable as it is, 2 if not. Raises UserError if there is none."""
    console, root = Console(), settings.root
    split, ignore_index = settings.split, settings.ignore_index
    name = settings.dataset or guess_dataset(root)
    if name not in LAYOUTS:
        raise UserError(f"--dataset {name}: no layout of files: use one of {', '.join(LAYOUTS)}")
    faults = Faults("skip")
    listing = list_tree(name, root, split, ignore_index, faults)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading")
        survey = read_all(
            listing, faults, 32, None, lambda _, done, total: bar.update(task, completed=done, total=total)
        )
    beyond_skipping = [
        f"{root}: the {part} split has no usable frame" for part in SPLITS if not any(survey.pixels[part])
    ]
    try:
        classes = dict(enumerate(class_names(listing, survey)))
    except UserError as error:
        beyond_skipping.append(str(error))
        classes = {value: "?" for value in range(UNLABELLED) if any(survey.pixels[part][value] for part in SPLITS)}

    console.print(name if settings.dataset else f"{name} (by its folders; --dataset says otherwise)", highlight=False)
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


def show_cache(settings: CacheSettings) -> int:
    """List what the cache holds, or delete it. Raises UserError where a name is of nothing."""
    console, folder = Console(), default_cache_dir()
    names, clearing = settings.names, settings.clear
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
    """Which of LAYOUTS a tree looks like. Raises UserError where it looks like none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: give the folder of a data set")
    if name := _looks_like(root):
        return name
    below = next((path for path in sorted(root.iterdir()) if path.is_dir() and _looks_like(path)), None)
    remedy = f"give {below}, which does" if below else "see check --help for what their folders hold"
    raise UserError(f"{root}: looks like none of {', '.join(LAYOUTS)}: {remedy}")


def _looks_like(root: Path) -> str | None:
    return next((name for name, layout in LAYOUTS.items() if any(root.glob(layout.sign))), None)


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


def _layouts() -> str:
    """What each kind of root holds."""
    lines = [f"  {(name, '')[i > 0]:13} {line}" for name, of in LAYOUTS.items() for i, line in enumerate(of.holds)]
    return "\n".join(["What ROOT holds, by data set:", "", *lines])


DATA = Family(
    name="python -m alges_fast.data",
    about="Look a data set over before a run, or write the synthetic one to disk.",
    steps=(
        Command(
            name="check",
            config=CheckSettings,
            body=check,
            about=(
                "reads every image and mask once, changes nothing, and lists the frames of each video, the share of "
                "each class in each split and every fault; exit code 0 if a run can use the tree as it is, 2 if not"
            ),
            example="check surgery",
            notes=_layouts(),
        ),
        Command(
            name="write-synthetic",
            config=WriteSettings,
            body=write_synthetic,
            about="draws seventeen videos of synthetic surgery: 540 frames, 8080 with --full",
            example="write-synthetic surgery --height 240",
        ),
        Command(
            name="cache",
            config=CacheSettings,
            body=show_cache,
            about=(
                "lists what is kept between runs, and where; --clear deletes it. All of it is made again when it is "
                "needed"
            ),
            example="cache --clear",
        ),
    ),
    example="""\
python -m alges_fast.data write-synthetic surgery
python -m alges_fast.data check surgery""",
    more="docs/data.md",
)


if __name__ == "__main__":
    sys.exit(main())
