"""What an experiment leaves under OUT for its report besides results.csv, and how it is read back.

    OUT/report_data/dataset.json                             DatasetSummary
    OUT/report_data/frames/<strategy>-seed<k>-round<rr>.npz  FrameMaps, one file per call of `save_frames`
    OUT/report_data/thumbnails.npz                           ids (n,) and images (n, 3, 64, 64) uint8
    OUT/<strategy>/seed<k>/round<rr>/picks.json              {"ids": [...], ...}, which the experiment itself writes

Files are written whole or not at all; equal contents give equal bytes. Every reader returns None or nothing for a file
that is not there, and raises UserError for one that is damaged.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from alges_fast import atomic
from alges_fast.errors import UserError

if TYPE_CHECKING:
    from alges_fast.data import Dataset

THUMBNAIL = 64

_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a file raises where its contents are not what was written."""


@dataclass(frozen=True)
class DatasetSummary:
    """What the report says of the data.

    `shares[split][k]` is class k's share of all pixels of the split, ignored ones included, so the shares add up to 1
    minus the ignored share.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    frames: Mapping[str, int]
    shares: Mapping[str, tuple[float, ...]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrameMaps:
    """Test frames as a trained model sees them, for a figure: n frames of S x S pixels.

    `norm_maps` is the `norm_map` output of `pixel_gradients`, the size of each pixel's gradient embedding.
    """

    strategy: str
    seed: int
    round: int
    ids: tuple[str, ...]
    images: npt.NDArray[np.uint8]  # (n, 3, S, S)
    masks: npt.NDArray[np.uint8]  # (n, S, S), 255 = ignored
    predictions: npt.NDArray[np.uint8]  # (n, S, S)
    norm_maps: npt.NDArray[np.float16]  # (n, S, S)


@dataclass(frozen=True)
class PickRecord:
    """The frames that one strategy chose with one seed after one training, in order of picking."""

    strategy: str
    seed: int
    round: int
    ids: tuple[str, ...]


def summarize(dataset: Dataset) -> DatasetSummary:
    """Count classes per split."""
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return DatasetSummary(
        name=dataset.name,
        classes=dataset.classes,
        palette=dataset.palette,
        frames={split: len(frames) for split, frames in splits.items()},
        shares={split: class_shares(frames.masks, len(dataset.classes)) for split, frames in splits.items()},
        notes=dataset.notes,
    )


def save_dataset(out: Path, dataset: Dataset) -> None:
    """Write dataset.json."""
    atomic.write_text(out / "report_data" / "dataset.json", json.dumps(asdict(summarize(dataset)), indent=1))


def class_shares(masks: npt.NDArray[np.uint8], n_classes: int) -> tuple[float, ...]:
    """Each class's share of the pixels of masks (N, S, S), ignored pixels counted in the total; zeros for no frames."""
    counts = np.zeros(256, dtype=np.int64)
    for mask in masks:  # one at a time: the masks may be a memory-mapped file larger than memory
        counts += np.bincount(mask.ravel(), minlength=256)
    return tuple((counts[:n_classes] / max(counts.sum(), 1)).tolist())


def save_frames(out: Path, frames: FrameMaps) -> None:
    """Write one model's frames. Raises ValueError: the arrays do not have the shapes of `FrameMaps`."""
    n, size = len(frames.ids), frames.masks.shape[1:]
    shapes = {"images": (n, 3, *size), "masks": (n, *size), "predictions": (n, *size), "norm_maps": (n, *size)}
    for name, shape in shapes.items():
        if getattr(frames, name).shape != shape:
            raise ValueError(f"{name} is {getattr(frames, name).shape}; expected {shape} for {n} ids")
    name = f"{frames.strategy}-seed{frames.seed}-round{frames.round:02d}.npz"
    _write_npz(out / "report_data" / "frames" / name, **vars(frames))


def save_thumbnails(out: Path, frames: Iterable[tuple[str, npt.NDArray[np.uint8]]]) -> None:
    """Write thumbnails of (id, image (3, S, S) uint8) pairs: every frame that some strategy picked."""
    small = {name: _thumbnail(image) for name, image in frames}
    images = np.stack(list(small.values())) if small else np.zeros((0, 3, THUMBNAIL, THUMBNAIL), np.uint8)
    _write_npz(out / "report_data" / "thumbnails.npz", ids=list(small), images=images)


def load_dataset(out: Path) -> DatasetSummary | None:
    """What `save_dataset` wrote, or None where it did not. Raises UserError for a damaged file."""
    path = out / "report_data" / "dataset.json"
    if not path.is_file():
        return None
    with _whole(path):
        return DatasetSummary(**_tupled(json.loads(path.read_text())))


def load_frames(out: Path) -> list[FrameMaps]:
    """All stored frames, by strategy, seed and round."""
    found = []
    for path in sorted((out / "report_data" / "frames").glob("*.npz")):
        with _whole(path), np.load(path) as stored:
            values = {name: value if value.ndim > 1 else _tupled(value.tolist()) for name, value in stored.items()}
            found.append(FrameMaps(**values))
    return sorted(found, key=lambda frames: (frames.strategy, frames.seed, frames.round))


def load_thumbnails(out: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Thumbnail (3, 64, 64) by id."""
    path = out / "report_data" / "thumbnails.npz"
    if not path.is_file():
        return {}
    with _whole(path), np.load(path) as stored:
        return dict(zip(stored["ids"].tolist(), stored["images"], strict=True))


def load_picks(out: Path) -> list[PickRecord]:
    """What was picked, by strategy, seed and round."""
    found = []
    for path in out.glob("*/seed*/round*/picks.json"):
        strategy, seed, round_ = path.parts[-4:-1]
        with _whole(path):
            ids = tuple(json.loads(path.read_text())["ids"])
        found.append(PickRecord(strategy, int(seed.removeprefix("seed")), int(round_.removeprefix("round")), ids))
    return sorted(found, key=lambda picks: (picks.strategy, picks.seed, picks.round))


def _thumbnail(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(3, S, S) to (3, 64, 64), averages of what falls into each pixel."""
    small = Image.fromarray(image.transpose(1, 2, 0)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small).transpose(2, 0, 1)


def _tupled(value: Any) -> Any:
    """What JSON and arrays give as lists, as tuples."""
    if isinstance(value, dict):
        return {name: _tupled(each) for name, each in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into a line that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged: delete it, then run again") from error


def _write_npz(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic.write_bytes(path, buffer.getvalue())
