"""The frames a user has: a folder of pictures and videos, a text list of them, or one video file.

A frame keeps its id wherever the pool is moved to: its path below the folder, or, in a video, path and time. Videos are
never unpacked: their frames are decoded for the model, and the picked ones once more at their own size.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alges_fast.data.files import (
    IMAGE_SUFFIXES,
    SIDEWAYS,
    Faults,
    FaultyFile,
    as_rgb,
    natural_key,
    open_picture,
    upright,
)
from alges_fast.errors import UserError, printable

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".mpg", ".mpeg", ".webm", ".wmv", ".mts", ".m2ts", ".ts")
CONVERT = {
    ".gif": "a GIF: make a video of it (ffmpeg -i NAME.gif NAME.mp4)",
    ".dcm": "DICOM: make pictures or a video of it (dcmj2pnm of DCMTK), without what names the patient",
}
"""What is no frame here, though people have frames in it, and what to do."""
GAP_SECONDS = 2.0
"""Picked frames of a video are at least this far apart, where nothing else is asked for."""
MAX_NAME = 220
"""Bytes of a file's name: 255 are the most that file systems take, and .NAME@00012.500s.png.png.draft is one too."""
_NUMBERS_A_SECOND = 25.0  # pictures are numbered at a video's rate
_SEEK_SECONDS = 4.0  # farther ahead than this, or behind, a seek is quicker than decoding on


@dataclass(frozen=True)
class PoolFrame:
    """One frame of the pool.

    id: unique and stable: "video1/frame_12.png", or "theatre.mp4@00012.500s" in a video.
    video: what it is a frame of: the video file, or the folder and the picture's name less its number.
    order: its place in the video: seconds for a video file, the picture's number; infinity for one without a number.
    path: the picture or the video file.
    timestamp: presentation time stamp in the video file's own units; None for a picture.
    """

    id: str
    video: str
    order: float
    path: Path
    timestamp: int | None = None


class LeftOut:
    """What of a pool cannot be used; with on_bad_image="stop" the first of it is raised instead.

    Attributes:
        reasons: why, in a line, by a frame's id, or by the name of a file of which no frame could be listed.
    """

    def __init__(self, on_bad_image: str, known: Mapping[str, str] | None = None) -> None:
        self._faults = Faults(on_bad_image)
        self.reasons = dict(known or {})

    def add(self, name: str, fault: FaultyFile) -> None:
        """Leave it out, or raise the fault."""
        self._faults.add(fault)
        self.reasons[name] = str(fault)

    def has(self, line: str) -> bool:
        """Whether an id, a window's or that of a frame which could not be listed, is of what is left out."""
        return line in self.reasons or any(line[: end.start()] in self.reasons for end in re.finditer("[@#]", line))

    def by_file(self) -> list[str]:
        """A line for each file: why, and how many of a video's frames it is about."""
        reasons: dict[str, list[str]] = {}
        for name in sorted(self.reasons, key=natural_key):
            reasons.setdefault(re.sub(r"@\d+\.\d{3}s$", "", name), []).append(self.reasons[name])
        return [of[0] if len(of) == 1 else f"{of[0]} ({len(of)} frames)" for of in reasons.values()]


def list_frames(source: Path, *, fps: float = 1.0, left_out: LeftOut | None = None) -> list[PoolFrame]:
    """Frames of a folder (searched to its depths), a text list (one path a line), or a video file.

    `fps` frames are taken from every second of a video. Files that are left out already are not opened, and those that
    cannot be listed are added to them; by default the first such file is an error. Raises UserError where nothing can
    be taken.
    """
    left_out = LeftOut("stop") if left_out is None else left_out
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder: give a folder of frames, a text list, or a video with --images"
        )
    if source.is_dir():
        root, paths = source, sorted(_walk(source), key=lambda path: natural_key(path.relative_to(source).as_posix()))
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        root, paths = source.parent, [source]
    else:
        root, paths = source.parent, _read_list(source)
    frames: list[PoolFrame] = []
    for path in paths:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
        if (why := _unusable(name)) is not None:
            name = printable(name)
            if name not in left_out.reasons:
                left_out.add(name, FaultyFile(f"{name}: {why}: rename it"))
            continue
        if (what := CONVERT.get(path.suffix.lower())) is not None:
            if name not in left_out.reasons:
                left_out.add(name, FaultyFile(f"{path}: {what}"))
            continue
        if name in left_out.reasons and path.suffix.lower() in VIDEO_SUFFIXES:
            continue
        if path.suffix.lower() in VIDEO_SUFFIXES:
            try:
                frames += _video_frames(path, name, fps)
            except FaultyFile as fault:
                left_out.add(name, fault)
        else:
            video, number = _numbered(name)
            frames.append(PoolFrame(name, video, math.inf if number is None else number, path))
    if not frames:
        if left_out.reasons:
            raise UserError(f"{source}: no frames in it but what is left out: {left_out.by_file()[0]}")
        kinds = " ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise UserError(f"{source}: no frames in it: expected files ending in {kinds}")
    return frames


def frame_sizes(frames: Sequence[PoolFrame], left_out: LeftOut) -> dict[str, tuple[int, int]]:
    """id -> (height, width), from the files' headers; what has none is left out."""
    sizes: dict[str, tuple[int, int]] = {}
    of_video: dict[Path, tuple[int, int]] = {}
    for frame in frames:
        try:
            if frame.timestamp is None:
                sizes[frame.id] = _size(frame.path)
                continue
            if frame.path not in of_video:
                with _open_video(frame.path) as container, _decodable(frame.path):
                    of_video[frame.path] = _video_size(container)
            sizes[frame.id] = of_video[frame.path]
        except FaultyFile as fault:
            left_out.add(frame.id, fault)
    return sizes


def places(frames: Sequence[PoolFrame], min_gap: float | None) -> dict[Any, tuple[str, float]]:
    """id -> (video, place in it): as files give it, in seconds or numbers, or in seconds for the default gap, None."""
    return {
        frame.id: (
            frame.video,
            frame.order / _NUMBERS_A_SECOND if min_gap is None and frame.timestamp is None else frame.order,
        )
        for frame in frames
    }


class FrameReader:
    """Reads frames of a list, quickest in their order: a video file stays open where it was last read."""

    def __init__(self) -> None:
        self._video: tuple[Path, Any, Iterator[Any]] | None = None
        self._position = 0.0

    def read(self, frame: PoolFrame) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB at the frame's own size, upright as its EXIF, or the video, says. Raises FaultyFile."""
        try:
            if frame.timestamp is None:
                with open_picture(frame.path) as picture:
                    turn, image = upright(picture), as_rgb(picture, frame.path)
                    return np.asarray(image if turn is None else image.transpose(turn))
            with _decodable(frame.path):
                return self._from_video(frame.path, frame.timestamp)
        except FaultyFile:
            self._video = None  # what a decoder does after an error is its own affair
            raise

    def _from_video(self, path: Path, timestamp: int) -> NDArray[np.uint8]:
        if self._video is None or self._video[0] != path:
            container = _open_video(path)
            self._video = path, container, container.decode(container.streams.video[0])
            self._position = -1.0
        _, container, decoded = self._video
        stream = container.streams.video[0]
        seconds = float(timestamp * stream.time_base)
        if not 0 <= seconds - self._position <= _SEEK_SECONDS:
            container.seek(timestamp, stream=stream)  # to the last key frame before it
            decoded = container.decode(stream)
            self._video = path, container, decoded
        for picture in decoded:
            if picture.pts is not None and picture.pts >= timestamp:
                self._position = float(picture.pts * stream.time_base)
                found: NDArray[np.uint8] = np.rot90(picture.to_ndarray(format="rgb24"), _quarter_turns(picture))
                return np.ascontiguousarray(found)
        raise FaultyFile(f"{path}: cut short: no picture at {seconds:.3f} s, where its index has one: restore the file")


def resized(image: NDArray[np.uint8], size: int) -> Tensor:
    """(3, size, size) uint8 of (H, W, 3), bilinear as `alges_fast.data.load_dataset` does it."""
    square = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def _size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, upright, from its header."""
    with open_picture(path) as picture:
        return picture.size if upright(picture) in SIDEWAYS else picture.size[::-1]


def _unusable(name: str) -> str | None:
    """Why a name cannot be that of files that go to annotators; None where it can."""
    kinds = {unicodedata.category(character) for character in name}
    if "Cs" in kinds:  # how Python reads bytes that are no text
        return "its name is no UTF-8"
    if "Cc" in kinds:
        return "its name holds control characters, which no import file may"
    if max(len(os.fsencode(part)) for part in name.split("/")) > MAX_NAME:
        return f"its name has more than {MAX_NAME} bytes, and those of its label and drafts are longer"
    return None


def _walk(folder: Path) -> Iterator[Path]:
    """Pictures and videos below a folder, and what could be made into some; hidden entries and links to folders are
    passed over."""
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: check its permissions") from None
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *CONVERT):
            yield path


def _read_list(source: Path) -> list[Path]:
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{source}: neither a folder, nor a video by its extension, nor a text list of paths: give one of these"
        ) from None
    paths = [source.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{source}: lists {path}, which is no file: correct the list (paths are relative to it)")
        if path.suffix.lower() not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *CONVERT):
            raise UserError(f"{source}: lists {path}, neither a picture nor a video by its extension: remove it")
    if len(set(paths)) < len(paths):
        twice = Counter(paths).most_common(1)[0][0]
        raise UserError(f"{source}: lists {twice} twice: remove one")
    return paths


def _numbered(name: str) -> tuple[str, float | None]:
    """What a picture is a frame of, and its number there: the last digits of its name."""
    folder, _, stem = Path(name).with_suffix("").as_posix().rpartition("/")
    found = re.search(r"^(.*?)[ _-]?(\d+)(\D*)$", stem)
    if found is None:
        return folder, None
    prefix, number, suffix = found.groups()
    return "/".join(part for part in (folder, prefix + suffix) if part), float(number)


def _open_video(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: videos need PyAV: pip install 'alges-fast[annotate]'") from None
    try:
        container = av.open(str(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FaultyFile(f"{path}: not a video that FFmpeg can read ({reason}): restore it or remove it") from None
    if not container.streams.video:
        raise FaultyFile(f"{path}: has no picture track: remove it")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _quarter_turns(picture: Any) -> int:
    """To the left, that a player gives a decoded picture: phones record how they were held."""
    return round(getattr(picture, "rotation", 0) / 90) % 4  # older PyAV does not tell


def _video_size(container: Any) -> tuple[int, int]:
    """(height, width) of an opened video's frames, as players show them."""
    stream = container.streams.video[0]
    first = next(container.decode(stream), None)
    sideways = first is not None and _quarter_turns(first) % 2 == 1
    return (stream.width, stream.height) if sideways else (stream.height, stream.width)


@contextlib.contextmanager
def _decodable(path: Path) -> Iterator[None]:
    """Turn what FFmpeg raises in the middle of a video into a line that names the file."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # PyAV raises OSError, ValueError, EOFError, and TypeError for what a header leaves out
        reason = getattr(error, "strerror", None) or error
        raise FaultyFile(f"{path}: damaged or cut short ({reason}): restore it or remove it") from None


def _video_frames(path: Path, name: str, fps: float) -> list[PoolFrame]:
    """The first picture at or after every 1 / fps seconds, from the file's packets alone: nothing is decoded."""
    with _open_video(path) as container, _decodable(path):
        stream = container.streams.video[0]
        stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        base = Fraction(stream.time_base)
    frames: list[PoolFrame] = []
    a_second = Fraction(fps)
    due = 0  # the number of the next 1 / fps seconds
    for stamp in stamps:
        ticks = (stamp - stamps[0]) * base.numerator
        number = ticks * a_second.numerator // (base.denominator * a_second.denominator)
        if number >= due:
            at = ticks / base.denominator
            frames.append(PoolFrame(f"{name}@{at:09.3f}s", name, at, path, stamp))
            due = number + 1
    if not frames:
        raise FaultyFile(f"{path}: holds no pictures: remove it")
    return frames
