"""The project's model for other programs: torch.export and ONNX, each checked against the model itself."""

from __future__ import annotations

import importlib.util
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast import atomic
from alges_fast.annotation.decoded import pictures_of
from alges_fast.errors import UserError
from alges_fast.models.frozen import FrozenModel
from alges_fast.normalisation import Normalisation
from alges_fast.project import network
from alges_fast.project.folder import Project
from alges_fast.project.pool import decoded, list_pool

CHECKED = 10
"""Frames on which the files must give the model's own predictions."""
SAME = 0.9999
"""Of the pixels: two runtimes round differently, and where two classes are equally likely either is right."""

SIZES = {0: ("batch", 1, 1024), 2: ("height", 32, 4096), 3: ("width", 32, 4096)}
"""What may differ from one batch of images to the next: by axis its name, least and most."""


class Deployed(nn.Module):
    """Images (B, 3, H, W) of any size, float32 between 0 and 1, to logits (B, K, H, W): all else is inside.

    Args:
        model: normalised images to logits of their size.
        normalisation: that it wants.
        side: of the square that images are stretched to for it; None for a model that does so itself.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, model: nn.Module, normalisation: Normalisation, side: int | None) -> None:
        super().__init__()
        self.model, self.side = model, side
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(normalisation.deviation).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        shown = images
        if self.side is not None:
            shown = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        logits: Tensor = self.model((shown - self.mean) / self.deviation)
        if self.side is not None:
            logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
        return logits


def export_model(project: Project, out: Path | None = None) -> list[Path]:
    """Write model.pt2, and model.onnx where ONNX is installed, of the newest model; by default beside its weights.

    Raises:
        UserError: no model, or a file whose predictions differ from the model's on the pool's first frames.
    """
    if not project.models:
        raise UserError(f"no model is trained yet: {project.command('train')} first")
    newest = project.models[-1]
    folder = newest.folder if out is None else out
    atomic.make_folder(folder)
    whole, normalisation = network.load_whole(newest, project.config.encoder_weights)
    side = None if isinstance(whole, FrozenModel) else project.config.image_size  # that brings pictures to its own
    model = Deployed(whole, normalisation, side).eval()
    pool, _ = decoded(list_pool(project), project.config.image_size)
    first = range(min(CHECKED, len(pool.frames)))
    frames = torch.from_numpy(pictures_of(pool.frames)(first, network.shown_size(newest))).float() / 255
    with torch.no_grad():
        expected = torch.cat([model(frame[None]) for frame in frames]).argmax(1)
    written = [_torch_export(model, frames, folder / "model.pt2", expected)]
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxscript"):
        written.append(_onnx(model, frames, folder / "model.onnx", expected))
    return written


def _dynamic() -> dict[int, Any]:
    return {axis: torch.export.Dim(name, min=least, max=most) for axis, (name, least, most) in SIZES.items()}


def _torch_export(model: nn.Module, frames: Tensor, path: Path, expected: Tensor) -> Path:
    example = frames[:1].repeat(2, 1, 1, 1)
    program = torch.export.export(model, (example,), dynamic_shapes=(_dynamic(),))
    contents = io.BytesIO()  # torch ends the process where a disk is full
    torch.export.save(program, contents)
    loaded = torch.export.load(io.BytesIO(contents.getbuffer())).module()
    with torch.no_grad():
        found = torch.cat([loaded(frame[None]) for frame in frames]).argmax(1)
    _check(path, found, expected)
    atomic.write_bytes(path, contents.getvalue())
    return path


def _onnx(model: nn.Module, frames: Tensor, path: Path, expected: Tensor) -> Path:
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = frames[:1].repeat(2, 1, 1, 1)
    torch.onnx.export(
        model,
        (example,),
        draft,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=(_dynamic(),),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    found = torch.from_numpy(np.concatenate([_run(draft, frame[None].numpy()) for frame in frames])).argmax(1)
    contents = draft.read_bytes()
    draft.unlink()
    _check(path, found, expected)
    atomic.write_bytes(path, contents)
    return path


def _run(path: Path, images: Any) -> Any:
    """Logits of an ONNX file: by onnxruntime, or by the slower runtime that ONNX itself brings."""
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime  # type: ignore[import-not-found]

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return session.run(None, {"images": images})[0]
    from onnx.reference import ReferenceEvaluator  # type: ignore[import-not-found]

    return ReferenceEvaluator(path).run(None, {"images": images})[0]


def _check(path: Path, found: Tensor, expected: Tensor) -> None:
    same = float((found == expected).float().mean())
    if same < SAME:
        raise UserError(
            f"{path.name}: predicts another class than the model in {100 * (1 - same):.2f} % of the pixels of "
            f"{len(expected)} frames, so it was not written: report it with the versions of torch and ONNX"
        )
