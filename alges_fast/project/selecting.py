"""The command `python -m alges_fast.select`: the first round of a project, over a model of one's own or before any.

It makes the folder that `python -m alges_fast.project` goes on with; what is in it is told in folder.py. Of several
processes (torchrun) each scores its share of the pool; the first reads and writes the folder and prints for all.
"""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from alges_fast import command
from alges_fast.annotation.lists import class_names
from alges_fast.data.files import read_lines
from alges_fast.job import Job, join, leads_job, naming_lost_processes
from alges_fast.models.weights import frozen_encoder
from alges_fast.project.asking import NextSettings
from alges_fast.project.choosing import choose_round
from alges_fast.project.config import ProjectConfig
from alges_fast.project.folder import Project, Round, begun
from alges_fast.settings import Command, read, setting


@dataclass(frozen=True)
class SelectConfig:
    """A project's first round.

    Args:
        images: a folder of pictures and videos, a list, or one video. Folders are searched to their depths.
        out: folder of the project that begins here; the same command again goes on, or replaces what --reject names.
        classes: their names; or a text file, one a line; by default "class 0", "class 1", ... of a model.
        reject: picks to replace, one a line. As picks.csv names them; the other picks stay. Add to the file and run
            again as often as you like. Of windows, also frames with all of theirs.
        seed: fixes every pick.
        fps: frames taken from each second of a video.
        image_size: side that the model was trained at. Frames are stretched to that square.
        feature_bits: 16, or 8 for half the disk, that features of the project's frozen model are kept in.
        image_prefix: what Label Studio serves the folder images of the round under.
    """

    images: str = setting(value="POOL", first=True)
    out: str = setting("alges_fast_selection", "DIR", first=True)
    classes: str | None = setting(None, "A,B,..", first=True)
    reject: str | None = setting(None, "FILE", first=True)
    seed: int = ProjectConfig.seed
    fps: float = ProjectConfig.fps
    image_size: int = setting(ProjectConfig.image_size, first=True)
    feature_bits: int = ProjectConfig.feature_bits
    image_prefix: str = ProjectConfig.image_prefix
    next: NextSettings = field(default_factory=NextSettings)

    @property
    def project(self) -> ProjectConfig:
        """What the folder is begun with; a model names the classes where nothing else does."""
        asked = self.next
        names = () if self.classes is None else class_names(self.classes, None, windows=asked.regions is not None)
        encoder, weights = ProjectConfig.encoder, ProjectConfig.encoder_weights
        if asked.model is None:
            encoder, weights = frozen_encoder(asked.encoder or "", asked.encoder_weights)
        return ProjectConfig(
            images=self.images,
            classes=tuple(names),
            fps=self.fps,
            image_size=self.image_size,
            seed=self.seed,
            encoder=encoder,
            encoder_weights=weights,
            feature_bits=self.feature_bits,
            image_prefix=self.image_prefix,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, choose, write.

    The exit code: 0, 1 where another process of the job has died, 2 for a user's mistake, 130 when interrupted.
    """
    return command.main(SELECT, argv)


def parse(argv: Sequence[str]) -> SelectConfig:
    """A configuration from flags, over a YAML file, over SelectConfig's defaults. Raises UserError, in one line."""
    config: SelectConfig = read(SELECT, argv)
    return config


def _select(config: SelectConfig) -> int:
    command.show_notes(leads=leads_job())
    job = Job(join())
    settings = config.next
    if settings.model is None:  # it is the project's
        settings = replace(settings, encoder=None, encoder_weights=None)
    bar = Console(stderr=True, quiet=not job.leads)
    left = command.TimeLeft()
    with naming_lost_processes(), contextlib.ExitStack() as held, bar.status("") as shown:

        def progress(what: str, done: int, total: int) -> None:
            shown.update(left.line(what, done, total))

        project = job.from_leader(lambda: held.enter_context(begun(Path(config.out), config.project)))
        reject = job.from_leader(lambda: [] if config.reject is None else read_lines(config.reject, "--reject"))
        round = choose_round(project, settings, reject, progress, job)
    if job.leads:
        for line in _told(project, round):
            print(line)
    return 0


def _told(project: Project, round: Round) -> list[str]:
    picks = round.picks or ()
    what = f"{len(picks)} picks"
    if round.outlines:
        what += f", with {round.expected(picks):,.0f} pixels of predicted outline"
    lines = [f"{what}: {round.folder / 'picks.csv'}   to look through: {round.folder / 'index.html'}"]
    left_out = round.folder / "left_out.csv"
    if left_out.exists():
        with left_out.open(encoding="utf-8", newline="") as file:
            lines += [f"left out: {row['reason']}" for row in csv.DictReader(file)]
    return [*lines, f"once it is annotated: {project.command('import', 'EXPORT')}"]


SELECT = Command(
    name="python -m alges_fast.select",
    config=SelectConfig,
    body=_select,
    about=(
        "Choose the next frames to annotate, or windows, and show why: the first round of a project. Files for CVAT "
        "and Label Studio, and a page, go to --out."
    ),
    example="""\
python -m alges_fast.select --model model.pt2 --images videos/ -n 20 \\
    --classes background,liver,tool --out runs/next""",
    more="docs/select.md, docs/strategies.md",
    notes="Under torchrun processes share the pool and pick as one would: docs/survival.md",
    if_out_of_memory="lower --batch_size, then run again",
)


if __name__ == "__main__":
    sys.exit(main())
