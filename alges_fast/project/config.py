"""What a project is about: project.yaml, written by `new` and never changed by a command."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import yaml

from alges_fast import atomic
from alges_fast.annotation.exports import ANNOTATE
from alges_fast.data.frames import TAKEN_NAMES
from alges_fast.errors import UserError, one_line
from alges_fast.labels import UNLABELLED
from alges_fast.settings import as_settings, from_settings, setting

FILE = "project.yaml"


@dataclass(frozen=True)
class ProjectConfig:
    """Fields are keys of project.yaml and flags of `new`.

    Args:
        images: the pool: a folder of pictures and videos (searched to its depths), a text list of paths, or one video.
        classes: names in the order of their ids; none where nothing is to be annotated yet.
        background: the class of pixels under no shape; None leaves them unlabelled.
        fps: frames taken from each second of a video.
        image_size: side of the square that frames are stretched to for the model.
        seed: fixes every pick and every training.
        encoder, encoder_weights: of the frozen model, as for `python -m alges_fast.run --architecture frozen`.
        feature_bits: 16, or 8 for half the disk, that features of the frozen model are kept in.
        image_prefix: what Label Studio serves a round's folder images under, where it reads files.
    """

    images: str = setting(value="POOL", first=True)
    classes: tuple[str, ...] = setting(value="A,B,..", first=True)
    background: str | None = None
    fps: float = 1.0
    image_size: int = 224
    seed: int = 0
    encoder: str = "tu-tf_efficientnet_lite0"
    encoder_weights: str = "packaged"
    feature_bits: int = 16
    image_prefix: str = "/data/local-files/?d=images/"

    def __post_init__(self) -> None:
        names = [unicodedata.normalize("NFC", name) for name in self.classes]
        if self.classes and (not 2 <= len(names) <= UNLABELLED or len(set(names)) < len(names)):
            raise UserError(
                f"--classes {','.join(self.classes)}: give 2 to {UNLABELLED} different names with commas between, such "
                "as background,liver,polyp"
            )
        for name in self.classes:
            if not name or name != name.strip() or not name.isprintable() or "," in name:
                raise UserError(f"--classes: {name!r} is no name: use letters that print, and no commas")
            if name == ANNOTATE or name in TAKEN_NAMES:
                raise UserError(f"--classes: {name!r} has a meaning of its own in the files: rename the class")
        if self.background is not None and self.background not in self.classes:
            raise UserError(f"--background {self.background}: no class of that name: use {', '.join(self.classes)}")
        if not 0 < self.fps < math.inf:
            raise UserError(f"--fps is {self.fps}: give a finite number above 0")
        if self.image_size < 32:
            raise UserError(f"--image_size is {self.image_size}: give at least 32")
        if self.feature_bits not in (8, 16):
            raise UserError(f"--feature_bits is {self.feature_bits}: give 8 or 16")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: give at least 0")

    def write(self, root: Path) -> None:
        atomic.write_text(root / FILE, yaml.safe_dump(as_settings(self), sort_keys=False, allow_unicode=True))

    @staticmethod
    def read(root: Path) -> ProjectConfig:
        """Raises UserError where there is none, or it is damaged."""
        path = root / FILE
        if not path.is_file():
            raise UserError(
                f"{root} is no project: begin one with python -m alges_fast.project new {root} --images POOL "
                "--classes NAME,NAME"
            )
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise TypeError("it holds no settings")
            config: ProjectConfig = from_settings(ProjectConfig, values)
            return config
        except (OSError, UserError, ValueError, TypeError, yaml.YAMLError) as error:
            raise UserError(f"{path} is damaged ({one_line(error)}): restore it") from None
