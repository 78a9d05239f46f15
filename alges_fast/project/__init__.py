"""Rounds with a real annotator: a folder that remembers them, and the steps that it goes through.

    new      a folder for a pool of frames or videos, and the classes
    next_round  chooses what to annotate and writes files for CVAT and Label Studio
    import_  takes in what comes back
    train    fits the project's model to all labels and measures it
    status   what is labelled, how good the model is, what to do now
    export   the model for other programs

Each is a function here and a command of `python -m alges_fast.project`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alges_fast.errors import UserError
from alges_fast.project.asking import NextSettings
from alges_fast.project.choosing import choose_round
from alges_fast.project.config import FILE, ProjectConfig
from alges_fast.project.folder import Import, Project, Round, TrainedModel, begun, opened
from alges_fast.project.importing import ImportSettings, Untouched, import_exports
from alges_fast.project.label_studio import fetch_rounds, send_round
from alges_fast.project.model_files import export_model
from alges_fast.project.pool import Progress, check_apart, silent
from alges_fast.project.status import status as _status
from alges_fast.project.training import TrainSettings, train_project

__all__ = [
    "Import",
    "ImportSettings",
    "NextSettings",
    "Progress",
    "Project",
    "ProjectConfig",
    "TrainSettings",
    "Untouched",
    "export",
    "fetch",
    "import_",
    "new",
    "next_round",
    "send",
    "status",
    "train",
]


def new(root: str | Path, config: ProjectConfig) -> None:
    """Begin a project; the same again changes nothing.

    Raises:
        UserError: no such pool, a folder of something else, or a project of other settings.
    """
    root = Path(root)
    if not config.classes:
        raise UserError("--classes is missing: give names with commas between, in the order of their ids")
    check_apart(root, Path(config.images))
    with begun(root, config) as project:
        if not (root / FILE).exists():
            project.config.write(root)


def next_round(
    root: str | Path, settings: NextSettings, progress: Progress = silent, *, reject: Sequence[str] = ()
) -> Round:
    """See `choosing.choose_round`."""
    with opened(Path(root)) as project:
        return choose_round(project, settings, reject, progress)


def import_(root: str | Path, exports: Sequence[Path], settings: ImportSettings | None = None) -> Import | None:
    """See `importing.import_exports`."""
    with opened(Path(root)) as project:
        return import_exports(project, exports, settings or ImportSettings())


def send(root: str | Path, url: str, progress: Progress = silent, *, plain_http: bool = False) -> str:
    """See `label_studio.send_round`."""
    with opened(Path(root)) as project:
        return send_round(project, url, progress, plain_http=plain_http)


def fetch(
    root: str | Path,
    url: str,
    settings: ImportSettings | None = None,
    progress: Progress = silent,
    *,
    plain_http: bool = False,
) -> list[Import]:
    """See `label_studio.fetch_rounds`."""
    with opened(Path(root)) as project:
        return fetch_rounds(project, url, settings or ImportSettings(), progress, plain_http=plain_http)


def train(root: str | Path, settings: TrainSettings | None = None, progress: Progress = silent) -> TrainedModel:
    """See `training.train_project`."""
    with opened(Path(root)) as project:
        return train_project(project, settings, progress)


def status(root: str | Path) -> str:
    """See `status.status`."""
    with opened(Path(root)) as project:
        return _status(project)


def export(root: str | Path, out: Path | None = None) -> list[Path]:
    """See `model_files.export_model`."""
    with opened(Path(root)) as project:
        return export_model(project, out)
