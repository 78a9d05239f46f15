"""The command line of `python -m alges_fast.project`: a thin layer over the functions of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from alges_fast import command, project
from alges_fast.data.files import read_lines
from alges_fast.errors import UserError
from alges_fast.project.folder import COMMAND, opened
from alges_fast.project.status import dice_line, next_step, outline_of
from alges_fast.settings import Command, Family, setting


@dataclass(frozen=True)
class InFolder:
    """A step of a project.

    Args:
        dir: the project's folder.
    """

    dir: Path = setting(value="DIR", positional=True, first=True)


@dataclass(frozen=True)
class New(InFolder):
    """What a project is about."""

    project: project.ProjectConfig = setting()


@dataclass(frozen=True)
class WithServer(InFolder):
    """A step that may speak with a server.

    Args:
        label_studio: a server of yours, to send tasks to or fetch them from; the key is read from LABEL_STUDIO_API_KEY.
        plain_http: let it be http, read by all on the way, not https.
    """

    label_studio: str | None = setting(None, "URL")
    plain_http: bool = False


@dataclass(frozen=True)
class Next(WithServer):
    """What to choose.

    Args:
        reject: picks to replace, one a line as picks.csv names them.
    """

    next: project.NextSettings = field(default_factory=project.NextSettings)
    reject: Path | None = setting(None, "FILE")


@dataclass(frozen=True)
class Import(WithServer):
    """What comes back, and how to read it.

    Args:
        exports: CVAT for images 1.1, CVAT Segmentation mask 1.1, Label Studio JSON, or a folder or zip of masks.
        background: the class of pixels under no shape (the project's).
        palette: lines 'name r g b', for masks of colours.
        finished: the frames to take, one a line; by default those in which something is drawn.
        accept_untouched: predictions that came back unchanged are labels.
        leave_untouched: import only what was changed or drawn.
        predictions: what nnUNetv2_predict wrote, in the place of exports. Its masks go out to be corrected, and with
            --save_probabilities it chooses.
    """

    exports: tuple[Path, ...] = setting((), "EXPORT.zip", positional=True, first=True)
    background: str | None = setting(None, "NAME")
    palette: Path | None = setting(None, "FILE")
    finished: Path | None = setting(None, "FILE")
    accept_untouched: bool = False
    leave_untouched: bool = False
    predictions: Path | None = setting(None, "FOLDER")

    def __post_init__(self) -> None:
        if self.accept_untouched and self.leave_untouched:
            raise UserError("give --accept_untouched or --leave_untouched, not both")
        if self.label_studio and self.exports:
            raise UserError("give exports or --label_studio, not both")
        if self.predictions and (self.exports or self.label_studio):
            raise UserError(
                "--predictions are no labels: import them and what annotators give back one after the other"
            )

    @property
    def untouched(self) -> project.Untouched:
        return "accept" if self.accept_untouched else "leave" if self.leave_untouched else "ask"


@dataclass(frozen=True)
class Train(InFolder):
    """Which network."""

    training: project.TrainSettings = field(default_factory=project.TrainSettings)


@dataclass(frozen=True)
class Export(InFolder):
    """Where to.

    Args:
        out: folder for the files (beside the model's weights).
        nnunet: write the labelled frames as a data set of nnU-Net v2 instead, such as nnUNet_raw/Dataset501_liver.
    """

    out: Path | None = setting(None, "FOLDER")
    nnunet: Path | None = setting(None, "FOLDER")
    of_nnunet: project.NnunetSettings = field(default_factory=project.NnunetSettings)

    def __post_init__(self) -> None:
        if self.nnunet is not None and self.out is not None:
            raise UserError("--out is for the model, --nnunet for a data set: give one of them")
        if self.nnunet is None and self.of_nnunet != project.NnunetSettings():
            raise UserError("--teach and --predict are for a data set: give --nnunet FOLDER too")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a step; the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    command.show_notes()
    return command.main(PROJECT, argv)


def _new(given: New, progress: project.Progress) -> list[str]:
    project.new(given.dir, given.project)
    return _afterwards(given.dir)


def _next(given: Next, progress: project.Progress) -> list[str]:
    reject = () if given.reject is None else tuple(read_lines(given.reject, "--reject"))
    round = project.next_round(given.dir, given.next, reject, progress)
    lines = [f"{len(round.picks or ())} picks: {round.folder / 'picks.csv'}"]
    if given.label_studio:
        lines.append(project.send(given.dir, given.label_studio, progress, plain_http=given.plain_http))
    return [*lines, *_afterwards(given.dir)]


def _import(given: Import, progress: project.Progress) -> list[str]:
    if given.predictions is not None:
        return [project.import_predictions(given.dir, given.predictions, progress), *_afterwards(given.dir)]
    settings = project.ImportSettings(given.background, given.palette, given.finished, given.untouched)
    if given.label_studio:
        imports = project.fetch(given.dir, given.label_studio, settings, progress, plain_http=given.plain_http)
    else:
        imports = [taken for taken in [project.import_(given.dir, given.exports, settings)] if taken is not None]
    with opened(given.dir) as open_project:
        lines = [_imported(open_project, taken) for taken in imports] or ["nothing new came back"]
        return [*lines, *_afterwards_of(open_project)]


def _imported(open_project: project.Project, taken: project.Import) -> str:
    windows = sum(len(windows) for windows in taken.frames.values() if windows is not None)
    what = f"{len(taken.frames)} frames{f' ({windows} windows)' if windows else ''} imported"
    beside = f"; {taken.outside:,} pixels that were drawn beside windows are dropped" if taken.outside else ""
    return f"{what}, {len(taken.refused)} refused; {outline_of(open_project, taken)}{beside}"


def _train(given: Train, progress: project.Progress) -> list[str]:
    project.train(given.dir, given.training, progress)
    with opened(given.dir) as open_project:
        return [dice_line(open_project), *_afterwards_of(open_project)]


def _status(given: InFolder, progress: project.Progress) -> list[str]:
    return [project.status(given.dir)]


def _export(given: Export, progress: project.Progress) -> list[str]:
    if given.nnunet is not None:
        return project.export_nnunet(given.dir, given.nnunet, given.of_nnunet, progress)
    return [f"written and checked: {path}" for path in project.export(given.dir, given.out)]


def _afterwards(root: Path) -> list[str]:
    with opened(root) as open_project:
        return _afterwards_of(open_project)


def _afterwards_of(open_project: project.Project) -> list[str]:
    return next_step(open_project).lines()


def _step(
    name: str,
    config: type,
    act: Callable[[Any, project.Progress], list[str]],
    example: str,
    about: str,
    gone: Mapping[str, str] = MappingProxyType({}),
) -> Command:
    """A step that prints what it did, with its progress on stderr."""

    def body(given: Any) -> int:
        console = Console(stderr=True)
        left = command.TimeLeft()
        with console.status("") as shown:
            for line in act(given, lambda what, done, total: shown.update(left.line(what, done, total))):
                console.print("", end="")
                print(line)
        return 0

    return Command(name, config, body, about, f"{name} liver{example}", gone=gone)


PROJECT = Family(
    name=COMMAND,
    about=(
        "Rounds with a real annotator, in a folder of plain files, DIR. Nothing has to be annotated before the first "
        "`next`. Any step may be stopped and run again; one that does not fit names the one that does. Nothing is sent "
        "anywhere but to a --label_studio of yours."
    ),
    steps=(
        _step("new", New, _new, " --images /data/theatre --classes background,liver,polyp", "begin a project"),
        _step("next", Next, _next, " -n 1 --regions 16x16", "choose what to annotate next, frames or windows of them"),
        _step("import", Import, _import, " export.zip --accept_untouched", "take in what annotators give back"),
        _step(
            "train",
            Train,
            _train,
            " --architecture unet",
            "fit the model to all labels and measure it",
            gone={"epochs": "give --steps, how many optimiser steps a whole network is trained for"},
        ),
        _step("status", InFolder, _status, "", "what is labelled, how good the model is, what to do now"),
        _step(
            "export",
            Export,
            _export,
            " --out deployed",
            "the model for other programs: torch.export, and ONNX where it is installed; or the labels for nnU-Net",
        ),
    ),
    example=f"{COMMAND} new liver --images theatre --classes liver,tool\n{COMMAND} next liver -n 1 --regions 16x16",
    more="docs/project.md",
    if_out_of_memory="begin a project of a smaller --image_size",
)
