"""What nnU-Net predicts of the pool, as the project's own: to be corrected, and to choose by where there are
probabilities.

    predictions/NNN/predictions.json     of which frames; written last
                   /masks/<frame>.png    class ids at the frame's own size, 255 where none is predicted
                   /logits/<frame>.npy   (K, h, w) float16, log-probabilities on the grid of the encoder's maps

They count until a label comes in. The newest takes the place of those before.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from alges_fast import atomic
from alges_fast.annotation.exports import file_name
from alges_fast.annotation.imports import ExpectedFrame, Reading
from alges_fast.annotation.imports.files import ExportFiles
from alges_fast.data.files import one_channel, read_ids
from alges_fast.data.frame_pool import FramePool
from alges_fast.errors import UserError
from alges_fast.models.frozen import grid_size
from alges_fast.pages import encoded
from alges_fast.progress import Progress, silent
from alges_fast.project.folder import Project
from alges_fast.project.nnunet_names import DATASET, IGNORE, OURS, LabelNames, case_of, label_names
from alges_fast.project.pool import list_pool
from alges_fast.project.reading import read_json

FOLDER, FACTS = "predictions", "predictions.json"
NAME = "predictions"
"""As `next --model` and pages call them."""
LEAST = 1e-6
"""Of a probability, so that it has a logarithm."""


@dataclass(frozen=True)
class Predictions:
    """Attributes:
    folder: theirs.
    frames: ids of those with a mask. scored: of those with probabilities.
    imports: numbers of the imports that the project had when they came.
    """

    folder: Path
    frames: frozenset[str]
    scored: frozenset[str]
    imports: frozenset[int]

    def mask(self, id: str) -> NDArray[np.uint8] | None:
        """(H, W) class ids of a frame. Raises UserError where the file is damaged."""
        return read_ids(self.folder / "masks" / f"{file_name(id)}.png") if id in self.frames else None

    def logits(self, id: str) -> Tensor:
        """(K, h, w) float16 of a frame with probabilities. Raises UserError where the file is damaged."""
        path = self.folder / "logits" / f"{file_name(id)}.npy"
        try:
            return torch.from_numpy(np.load(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): import the predictions again") from None

    def joined(self, maps: FramePool, n_classes: int) -> FramePool:
        """By id, (K + C, h, w) float16: these logits before the encoder's maps; zeros where there are none."""

        def joined_at(at: int) -> Tensor:
            id, values = maps[at]
            known = id in self.scored
            return torch.cat((self.logits(id) if known else values.new_zeros(n_classes, *values.shape[1:]), values))

        return FramePool(maps.ids, joined_at)


class AsPredicted(nn.Module):
    """A last layer whose logits are what was predicted, the first of its features. Its gradient is that of a linear
    layer over them and the encoder's that is to correct the predictions: nnU-Net's own features stay with nnU-Net."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.look_at(n_classes)

    def look_at(self, n_features: int) -> None:
        """Take so many features, of which the first are the predictions."""
        self.layer = nn.Conv2d(n_features, self.n_classes, 1).requires_grad_(False)
        self.layer.weight.copy_(torch.eye(self.n_classes, n_features)[..., None, None])
        self.layer.bias.zero_()  # type: ignore[union-attr]

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layer(features)
        return logits


def newest(project: Project) -> Predictions | None:
    """The predictions that were imported last; None where none were."""
    parent = project.root / FOLDER
    numbers = sorted(path.name for path in parent.glob("[0-9]*") if (path / FACTS).exists()) if parent.is_dir() else []
    if not numbers:
        return None
    facts = read_json(parent / numbers[-1] / FACTS)
    try:
        ids = [frozenset(facts[name]) for name in ("frames", "scored", "imports")]
        return Predictions(parent / numbers[-1], *ids)
    except (KeyError, TypeError) as error:
        raise UserError(f"{parent / numbers[-1] / FACTS} is damaged ({error}): import the predictions again") from None


def in_use(project: Project) -> Predictions | None:
    """The newest predictions, where no label came in since."""
    of = newest(project)
    return of if of is not None and of.imports == {import_.number for import_ in project.imports} else None


def import_predictions(project: Project, folder: Path, progress: Progress = silent) -> str:
    """Take in a folder that nnUNetv2_predict wrote: CASE.png, and CASE.npz where it was told --save_probabilities. All
    of it, or one line that says why none.

    Raises:
        UserError: no such folder, other labels, a case that is no frame, a mask or probabilities that are damaged.
    """
    if not folder.is_dir():
        raise UserError(f"--predictions {folder}: no such folder: give what nnUNetv2_predict wrote with -o")
    names = label_names(project.config)
    of_earlier = _check_labels(folder, names, project)
    files = ExportFiles(folder)
    masks = [name for name in files.names if PurePosixPath(name).suffix == ".png"]
    if not masks:
        raise UserError(f"--predictions {folder}: no predictions (CASE.png) in it: give what nnUNetv2_predict wrote")
    pool = list_pool(project)
    by_case = {case_of(frame.id): frame.id for frame in pool.frames}
    reading = Reading(
        [ExpectedFrame(id, pool.names[id], size) for id, size in pool.sizes.items()], project.config.classes
    )
    size = project.config.image_size
    parent = project.root / FOLDER
    before = sorted(path for path in parent.glob("[0-9]*") if path.is_dir())
    draft = parent / ".draft"
    atomic.remove_draft(draft)
    found: set[str] = set()
    scored: list[str] = []
    try:
        for done, name in enumerate(masks):
            progress("reading predictions", done, len(masks))
            stem, where = PurePosixPath(name).with_suffix(""), files.where(name)
            frame = reading.frame(pool.names.get(by_case.get(stem.name, ""), stem.as_posix()), where, stem=True)
            if frame.id in found:
                raise UserError(f"{where}: {frame.name} is predicted twice: remove one")
            found.add(frame.id)
            values = one_channel(files.mask(name, frame), where)
            if (wrong := values[(values < 0) | (values >= names.names[IGNORE])]).size:
                raise UserError(
                    f"{where}: {wrong[0]} is no label of the data set: predict with the network of this one"
                )
            mask = encoded(Image.fromarray(names.ids[values]), "png")
            atomic.write_draft(draft / "masks" / f"{frame.name}.png", mask)
            if (path := folder / f"{stem}.npz").exists():
                logits = _on_grid(_probabilities(path, names, frame.size), names, project, grid_size((size, size)))
                buffer = io.BytesIO()
                np.save(buffer, logits)
                atomic.write_draft(draft / "logits" / f"{frame.name}.npy", buffer.getvalue())
                scored.append(frame.id)
        facts: dict[str, Any] = {
            "frames": sorted(found),
            "scored": sorted(scored),
            "imports": [import_.number for import_ in project.imports],
        }
        atomic.write_json(draft / FACTS, facts)
        number = int(before[-1].name) + 1 if before else 0
        atomic.move_folder(draft, parent / f"{number:03d}")
    finally:
        atomic.remove_draft(draft)
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    for path in before:
        shutil.rmtree(path)
    return f"{len(found)} frames predicted, {len(scored)} of them with probabilities to choose by{of_earlier}"


def _check_labels(folder: Path, names: LabelNames, project: Project) -> str:
    """What there is to say of the data set that the network learned from, whose description nnU-Net puts beside what it
    predicts. Raises UserError where its labels are others than the project's."""
    path = folder / DATASET
    facts = read_json(path) if path.exists() else {}
    if not isinstance(facts, dict) or facts.get("labels", names.names) != names.names:
        raise UserError(f"{path}: its labels are not this project's: predict with a network of `export --nnunet`")
    ours = facts.get(OURS)
    learned = set(ours.get("imports", ())) if isinstance(ours, dict) else None
    more = 0 if learned is None else len({import_.number for import_ in project.imports} - learned)
    return f"; labels of {more} later imports are unknown to the network" if more else ""


def _probabilities(path: Path, names: LabelNames, size: Sequence[int]) -> NDArray[np.floating[Any]]:
    """(labels, H, W) of a case. By numpy's default nothing is unpickled, and no more is read than the frame has."""
    shape = (names.names[IGNORE], 1, *size)
    try:
        with zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as file:
            version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            given, _, dtype = read_header(file)  # type: ignore[no-untyped-call]
            if given != shape or dtype.kind != "f":
                raise UserError(f"{path}: probabilities of {given} {dtype}, where {shape} are of this frame")
        with np.load(path) as arrays:
            values: NDArray[np.floating[Any]] = arrays["probabilities"][:, 0]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}): predict it again") from None
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise UserError(f"{path}: holds no probabilities (negative, or not finite): predict it again")
    return values


def _on_grid(
    values: NDArray[np.floating[Any]], names: LabelNames, project: Project, grid: tuple[int, int]
) -> NDArray[np.float16]:
    """(K, h, w) logarithms of the classes' mean probabilities in every cell of a grid."""
    of_classes = torch.from_numpy(values[names.values[: len(project.config.classes)]]).float()
    means = F.interpolate(of_classes[None], grid, mode="area")[0].clamp(min=LEAST)
    logits: NDArray[np.float16] = (means / means.sum(0)).log().half().numpy()
    return logits
