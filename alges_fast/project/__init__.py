"""Rounds with a real annotator: a folder that remembers them, and the steps that it goes through.

    new      a folder for a pool of frames or videos, and the classes
    next_round  chooses what to annotate and writes files for CVAT and Label Studio
    import_  takes in what comes back
    train    fits the project's model to all labels and measures it
    status   what is labelled, how good the model is, what to do now
    export   the model for other programs
    export_nnunet, import_predictions  a data set for nnU-Net, and what it predicts

Each is a function here and a command of `python -m alges_fast.project`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from alges_fast.errors import UserError
from alges_fast.models.weights import check_encoder
from alges_fast.progress import Progress
from alges_fast.project.asking import NextSettings
from alges_fast.project.choosing import choose_round
from alges_fast.project.config import FILE, ProjectConfig
from alges_fast.project.folder import Import, Project, begun, opened
from alges_fast.project.importing import ImportSettings, Untouched, import_exports
from alges_fast.project.label_studio import fetch_rounds, send_round
from alges_fast.project.model_files import export_model
from alges_fast.project.nnunet import NnunetSettings
from alges_fast.project.nnunet import export_nnunet as _export_nnunet
from alges_fast.project.pool import check_apart
from alges_fast.project.predictions import import_predictions as _import_predictions
from alges_fast.project.status import status as _status
from alges_fast.project.training import TrainSettings, train_project

__all__ = [
    "Import",
    "ImportSettings",
    "NextSettings",
    "NnunetSettings",
    "Progress",
    "Project",
    "ProjectConfig",
    "TrainSettings",
    "Untouched",
    "export",
    "export_nnunet",
    "fetch",
    "import_",
    "import_predictions",
    "new",
    "next_round",
    "send",
    "status",
    "train",
]

P = ParamSpec("P")
R = TypeVar("R")


def new(root: str | Path, config: ProjectConfig) -> None:
    """Begin a project; the same again changes nothing.

    Raises:
        UserError: no such pool or encoder, a folder of something else, or a project of other settings.
    """
    root = Path(root)
    if not config.classes:
        raise UserError("--classes is missing: give names with commas between, in the order of their ids")
    check_encoder(config.encoder, config.encoder_weights)
    check_apart(root, Path(config.images))
    with begun(root, config) as project:
        if not (root / FILE).exists():
            project.config.write(root)


def status(root: str | Path) -> str:
    """What is labelled, how good the model is, what to do now, in lines; writes it as a page, too, where it may."""
    with opened(Path(root), reading=True) as project:
        return _status(project)


def _of_folder(step: Callable[Concatenate[Project, P], R]) -> Callable[Concatenate[str | Path, P], R]:
    """A step as a function of the project's folder, which is opened for it, to this process alone."""

    def of_folder(root: str | Path, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with opened(Path(root)) as project:
            return step(project, *args, **kwargs)

    of_folder.__doc__ = step.__doc__
    return of_folder


next_round = _of_folder(choose_round)
import_ = _of_folder(import_exports)
send = _of_folder(send_round)
fetch = _of_folder(fetch_rounds)
train = _of_folder(train_project)
export = _of_folder(export_model)
export_nnunet = _of_folder(_export_nnunet)
import_predictions = _of_folder(_import_predictions)
