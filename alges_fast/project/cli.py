"""The command line of `python -m alges_fast.project`: a thin layer over the functions of this package."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from alges_fast import project
from alges_fast.annotation.lists import read_lines
from alges_fast.command import complete, run_command
from alges_fast.errors import UserError
from alges_fast.project.folder import COMMAND, opened
from alges_fast.project.status import dice_line, next_step, outline_of
from alges_fast.project.training import WHOLE

HELP = f"""\
usage: {COMMAND} STEP DIR [--SETTING VALUE ...]

Rounds with a real annotator, in a folder of plain files, DIR:

  new DIR --images POOL --classes background,liver,polyp
                         begin a project
  next DIR -n 20         choose what to annotate next; windows: --regions 16x16
                         Files for CVAT and Label Studio in DIR/rounds/000
  import DIR EXPORT.zip  what the tool gives back, whole or in part
  train DIR              fit the model to all labels, and measure it
  status DIR             where things stand, and what to do now
  export DIR             the model for other programs

then `next` again. Nothing has to be annotated before the first `next`. Any
step may be stopped and run again; one that does not fit names the one that
does. Nothing is sent anywhere but to a --label_studio of yours.

All settings of a step: STEP --help. More: docs/project.md
"""

STEPS = {
    "new": "begin a project",
    "next": "choose what to annotate next",
    "import": "take in what annotators give back",
    "train": "fit the model to all labels and measure it",
    "status": "what is labelled, how good the model is, what to do now",
    "export": "the model for other programs: torch.export, and ONNX where it is installed",
}
EXAMPLES = {
    "new": "new liver --images /data/theatre --classes background,liver,polyp",
    "next": "next liver -n 1 --regions 16x16",
    "import": "import liver export.zip --accept_untouched",
    "train": "train liver --architecture unet",
    "status": "status liver",
    "export": "export liver --out deployed",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a step; the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    complete(_parser())
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return run_command(
        lambda: _run(_parser().parse_args(argv)), if_out_of_memory="begin a project of a smaller --image_size"
    )


def _parser() -> argparse.ArgumentParser:
    defaults, chosen = project.ProjectConfig("", ("a", "b")), project.NextSettings()
    parser = _Parser(prog=COMMAND)
    parser.format_help = lambda: HELP  # type: ignore[method-assign]
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP", parser_class=_Parser)
    of = {}
    for name, what in STEPS.items():
        of[name] = steps.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"example: {COMMAND} {EXAMPLES[name]}",
            allow_abbrev=False,
        )
        of[name].add_argument("dir", metavar="DIR", type=Path, help="the project's folder")

    new = of["new"].add_argument
    new("--images", required=True, metavar="POOL", help="a folder of pictures and videos, a text list, or one video")
    new("--classes", required=True, help="names with commas between, in the order of their ids")
    new("--background", metavar="NAME", help="the class of pixels under no shape; without it they are unlabelled")
    new("--fps", type=float, default=defaults.fps, help="frames taken from a second of video (%(default)s)")
    new("--image_size", type=int, default=defaults.image_size, help="side of the model's square input (%(default)s)")
    new("--seed", type=int, default=defaults.seed, help="fixes every pick and training (%(default)s)")
    new("--encoder", default=defaults.encoder, help="of the frozen model (%(default)s)")
    new("--encoder_weights", default=defaults.encoder_weights, help="packaged, a name, or a file (%(default)s)")
    new("--image_prefix", default=defaults.image_prefix, help="what Label Studio serves images under (%(default)s)")

    choose = of["next"].add_argument
    choose(
        "-n", "--n", type=int, default=chosen.n, help="frames, or the whole frames that windows add up to (%(default)s)"
    )
    choose("--regions", metavar="RxC", help="choose windows of frames, cut into R rows and C columns, such as 16x16")
    choose("--strategy", help="by default one that suits what is labelled so far")
    choose("--model", help="a model of yours (.pt2, .ts, package.module:function) in the place of the project's")
    choose(
        "--min_gap",
        type=float,
        metavar="GAP",
        help="least distance of frames of one video: seconds, or numbers of pictures",
    )
    choose(
        "--budget",
        choices=("pixels", "outline"),
        default=chosen.budget,
        help="what is spent: pixels, or the outline that the model predicts (%(default)s)",
    )
    choose(
        "--desk",
        choices=("auto", "sheets", "crops", "frames"),
        default=chosen.desk,
        help="what windows are annotated on; auto: sheets for CVAT, a picture each for Label Studio",
    )
    choose("--budget_pixels", type=int, metavar="N", help="with regions, how many pixels to choose, in the place of n")
    choose("--labelled", metavar="FILE", help="what is annotated elsewhere, an id or a picture's path a line")
    choose("--class_weights", metavar="W,W", help="classes to aim at: a factor each, or JSON by name")
    choose("--normalise", choices=("auto", "imagenet", "half", "unit"), default="auto", help="pictures for --model")
    choose("--architecture", default=chosen.architecture, help="of a safetensors --model that does not say it")
    choose("--encoder", help="its encoder (resnet18)")
    choose("--encoder_weights", help="where the weights of its frozen encoder are, if elsewhere than the file says")
    choose("--head_kernel", type=int, default=1, help="size of its last convolution (%(default)s)")
    choose("--on_bad_image", choices=("skip", "stop"), default="skip", help="what cannot be used (%(default)s)")
    choose("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the model runs (%(default)s)")
    choose("--precision", choices=("32-true", "bf16-mixed", "16-mixed"), default="32-true", help="(%(default)s)")
    choose("--batch_size", type=int, default=16, help="frames in a forward pass (%(default)s)")
    choose("--reject", type=Path, metavar="FILE", help="picks to replace, one a line as picks.csv names them")
    _server(of["next"], "also make a project with these tasks on this server")

    take = of["import"].add_argument
    take(
        "exports",
        metavar="EXPORT",
        nargs="*",
        type=Path,
        help="CVAT for images 1.1, CVAT Segmentation mask 1.1, Label Studio JSON, or a folder or zip of masks",
    )
    take("--background", metavar="NAME", help="the class of pixels under no shape (the project's)")
    take("--palette", type=Path, help="lines 'name r g b', for masks of colours")
    take("--finished", type=Path, help="the frames to take, one a line; by default those in which something is drawn")
    same = of["import"].add_mutually_exclusive_group()
    same.add_argument("--accept_untouched", action="store_true", help="predictions that came back unchanged are labels")
    same.add_argument("--leave_untouched", action="store_true", help="import only what was changed or drawn")
    _server(of["import"], "fetch what is finished from this server")

    fit = of["train"].add_argument
    fit("--architecture", help="frozen (seconds), or a network trained whole, such as unet (as the newest model's)")
    fit("--encoder", help=f"of a whole network ({WHOLE['encoder']})")
    fit("--encoder_weights", help="of a whole network: packaged, a name such as imagenet, or a file (packaged)")
    fit("--steps", type=int, help=f"optimiser steps of a whole network ({WHOLE['steps']})")
    fit("--batch_size", type=int, help=f"of a whole network ({WHOLE['batch_size']})")
    fit("--lr", type=float, help=f"of a whole network, the highest ({WHOLE['lr']})")
    fit("--augment", help=f"how its frames are moved ({WHOLE['augment']}), or none")
    fit(
        "--teacher",
        choices=("none", "frozen"),
        help="what tells a whole network of pixels without a label: a head on the same labels, or nothing (frozen)",
    )
    fit("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where a whole network is trained")

    of["export"].add_argument("--out", type=Path, help="folder for the files (beside the model's weights)")
    return parser


def _server(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--label_studio", metavar="URL", help=f"{what}; the key is read from LABEL_STUDIO_API_KEY")
    parser.add_argument("--plain_http", action="store_true", help="let it be http, read by all on the way, not https")


def _run(given: argparse.Namespace) -> int:
    root: Path = given.dir
    console = Console(stderr=True)
    with console.status("") as shown:

        def progress(what: str, done: int, total: int) -> None:
            shown.update(f"{what} {done}/{total}")

        for line in _STEPS[given.step](root, given, progress):
            console.print("", end="")
            print(line)
    return 0


def _new(root: Path, given: argparse.Namespace, progress: project.Progress) -> list[str]:
    names = [name.strip() for name in given.classes.split(",")]
    settings = {
        name: getattr(given, name)
        for name in ("background", "fps", "image_size", "seed", "encoder", "encoder_weights", "image_prefix")
    }
    project.new(root, project.ProjectConfig(given.images, tuple(names), **settings))
    return _afterwards(root)


def _next(root: Path, given: argparse.Namespace, progress: project.Progress) -> list[str]:
    reject = () if given.reject is None else tuple(read_lines(str(given.reject), "--reject"))
    names = [each.name for each in fields(project.NextSettings)]
    settings = project.NextSettings(**{name: getattr(given, name) for name in names})
    round = project.next_round(root, settings, progress, reject=reject)
    lines = [f"{len(round.picks or ())} picks: {round.folder / 'picks.csv'}"]
    if given.label_studio:
        lines.append(project.send(root, given.label_studio, progress, plain_http=given.plain_http))
    return [*lines, *_afterwards(root)]


def _import(root: Path, given: argparse.Namespace, progress: project.Progress) -> list[str]:
    untouched: project.Untouched = "accept" if given.accept_untouched else "leave" if given.leave_untouched else "ask"
    settings = project.ImportSettings(given.background, given.palette, given.finished, untouched)
    if given.label_studio:
        if given.exports:
            raise UserError("give exports or --label_studio, not both")
        imports = project.fetch(root, given.label_studio, settings, progress, plain_http=given.plain_http)
    else:
        imports = [taken for taken in [project.import_(root, given.exports, settings)] if taken is not None]
    with opened(root) as open_project:
        lines = [_imported(open_project, taken) for taken in imports] or ["nothing new came back"]
        return [*lines, *_afterwards_of(open_project)]


def _imported(open_project: project.Project, taken: project.Import) -> str:
    windows = sum(len(windows) for windows in taken.frames.values() if windows is not None)
    what = f"{len(taken.frames)} frames{f' ({windows} windows)' if windows else ''} imported"
    beside = f"; {taken.outside:,} pixels that were drawn beside windows are dropped" if taken.outside else ""
    return f"{what}, {len(taken.refused)} refused; {outline_of(open_project, taken)}{beside}"


def _train(root: Path, given: argparse.Namespace, progress: project.Progress) -> list[str]:
    names = ("architecture", "encoder", "encoder_weights", "steps", "batch_size", "lr", "augment", "teacher", "device")
    project.train(root, project.TrainSettings(**{name: getattr(given, name) for name in names}), progress)
    with opened(root) as open_project:
        return [dice_line(open_project), *_afterwards_of(open_project)]


def _status(root: Path, given: argparse.Namespace, progress: project.Progress) -> list[str]:
    return [project.status(root)]


def _export(root: Path, given: argparse.Namespace, progress: project.Progress) -> list[str]:
    return [f"written and checked: {path}" for path in project.export(root, given.out)]


_STEPS = {"new": _new, "next": _next, "import": _import, "train": _train, "status": _status, "export": _export}


def _afterwards(root: Path) -> list[str]:
    with opened(root) as open_project:
        return _afterwards_of(open_project)


def _afterwards_of(open_project: project.Project) -> list[str]:
    step = next_step(open_project)
    return [f"now: {step.why}", *(f"  {command}" for command in step.commands)]
