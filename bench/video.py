"""Rounds of a project over hours of video: seconds, CPU seconds and peak memory of each command, each in a process.

Videos of an hour at one frame a second are encoded, small and plain; what the packaged encoder would make of their
frames is drawn instead: fields of 13 classes that move slowly, a blend of one prototype of 64 channels a class, and
noise, 56 x 56 x 64 float16 a frame. One hour is drawn; every other hour is that one with its frames shifted in space
and mirrored, each hour otherwise. All lie in the cache in the place of the encoder's, in full, 401 kB a frame, and are
read from there. The pool's decoded pictures, which no measured command reads, are a sparse file.
The head is trained by `project train` on 20 frames labelled by the field.

    python bench/video.py --frames 3600 61200 [--against CHECKOUT] [--json FILE]

With --against the commands of another checkout run before this one's, over the same files, where it can read them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
SIDE, GRID, CHANNELS, CLASSES, WAVES, HOUR = 224, 56, 64, 13, 12, 3600
NAMES = tuple(f"class{k}" for k in range(CLASSES))
CELLS = "16x16"


class Drawn:
    """The frames of an hour of video, as the encoder would see them."""

    def __init__(self) -> None:
        generator = np.random.default_rng(7)
        waves = generator.normal(0, 2.2, (WAVES, 2)) / GRID * 2 * np.pi
        y, x = np.mgrid[:GRID, :GRID].reshape(2, -1)
        self.waves = np.exp(1j * (waves[:, :1] * x + waves[:, 1:] * y))
        self.amplitudes = generator.normal(size=(CLASSES, WAVES)) + 1j * generator.normal(size=(CLASSES, WAVES))
        self.amplitudes *= np.exp(-0.15 * np.arange(CLASSES))[:, None]  # some classes are rare
        self.speeds = generator.normal(0, 0.01, WAVES)  # radians a second
        self.prototypes = _prototypes() + 0.3 * generator.normal(size=(CLASSES, CHANNELS)).astype(np.float32)

    def heights(self, second: int) -> NDArray[np.float32]:
        """(3136, 13): how much there is of each class at each place."""
        moved = self.amplitudes * np.exp(1j * self.speeds * second)
        heights: NDArray[np.float32] = (moved @ self.waves).real.T.astype(np.float32)
        return heights

    def mask(self, video: int, second: int) -> NDArray[np.uint8]:
        """(224, 224) class ids."""
        classes = moved(self.heights(second).argmax(1).reshape(GRID, GRID).astype(np.uint8), video)
        return classes.repeat(SIDE // GRID, 0).repeat(SIDE // GRID, 1)

    def features(self, second: int) -> NDArray[np.float16]:
        """(56, 56, 64)."""
        heights = 3 * self.heights(second)
        shares = np.exp(heights - heights.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        clean = (shares @ self.prototypes).reshape(GRID, GRID, CHANNELS)
        noise = _noise()[second * 31 % len(_noise())]
        return (clean + np.roll(noise, (second * 7 % GRID, second * 13 % GRID), (0, 1))).astype(np.float16)


def moved(frame: NDArray[Any], video: int) -> NDArray[Any]:
    """A frame (56, 56, ...) of the first hour as one of another hour."""
    return np.roll(frame, (11 * video % GRID, 17 * video % GRID), (0, 1))[:, :: 1 if video % 2 == 0 else -1]


@cache
def _prototypes() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(CLASSES, CHANNELS)).astype(np.float32)


@cache
def _noise() -> NDArray[np.float32]:
    return (0.8 * np.random.default_rng(2).standard_normal((97, GRID, GRID, CHANNELS))).astype(np.float32)


def write_video(path: Path, seconds: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for second in range(seconds):
            picture = np.full((SIDE, SIDE, 3), 60 + second % 100, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_sparse(place: Path, n: int) -> None:
    """The decoded frames in the cache's format (alges_fast/cached_rows.py): black, and without blocks on the disk."""
    row = 3 * SIDE**2
    place.mkdir(parents=True, exist_ok=True)
    with (place / "images.rows").open("wb") as file:
        file.truncate(n * row)
    np.full(n, zlib.crc32(bytes(row)), "<u4").tofile(place / "images.crc")
    index = {"format": 1, "arrays": {"images": ["|u1", [n, 3, SIDE, SIDE]]}, "facts": {"reasons": {}}}
    (place / "index.json").write_text(json.dumps(index))


def drawn_hour(folder: Path, n: int) -> NDArray[np.float16]:
    """(n, 56, 56, 64), drawn once."""
    path = folder / f"hour-{n}.npy"
    if not path.exists():
        drawn = Drawn()
        np.save(path, np.stack([drawn.features(second) for second in range(n)]))
    hour: NDArray[np.float16] = np.load(path, mmap_mode="r")
    return hour


def prepare(folder: Path, n_frames: int) -> Path:
    """The project, features in the cache, one round labelled and a head trained; what is there is not made again."""
    from alges_fast.annotation import decoded
    from alges_fast.annotation.exports import cvat_xml
    from alges_fast.data.loading import palette
    from alges_fast.project import NextSettings, ProjectConfig, import_, network, new, next_round, train
    from alges_fast.project.folder import opened
    from alges_fast.project.pool import list_pool

    project_folder = folder / "project"
    if (folder / "ready").exists():
        return project_folder
    shutil.rmtree(folder / "project", ignore_errors=True)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for video, start in enumerate(range(0, n_frames, HOUR)):
        path = folder / "videos" / f"{video:02d}.mp4"
        if not path.exists():
            write_video(path, min(HOUR, n_frames - start))
    new(project_folder, ProjectConfig(images=str(folder / "videos"), classes=NAMES))
    with opened(project_folder) as project:
        frames = list_pool(project).frames
    assert len(frames) == n_frames, len(frames)
    place = folder / "cache" / f"pool-{SIDE}-{decoded._key(frames, SIDE)}"
    write_sparse(place, n_frames)
    hour = drawn_hour(folder.parent, min(n_frames, HOUR))

    def make_features() -> Iterator[NDArray[np.float16]]:
        for at in range(n_frames):
            yield moved(hour[at % HOUR], at // HOUR)[None]

    encode = network.FrozenEncoder.__call__
    rows = make_features()

    def features_of(encoder: Any, images: Any) -> Any:
        import torch

        some = np.concatenate([next(rows) for _ in range(len(images))])
        return torch.from_numpy(some).permute(0, 3, 1, 2)

    network.FrozenEncoder.__call__ = features_of  # type: ignore[method-assign]
    try:
        round = next_round(project_folder, NextSettings(n=20, strategy="random"))
    finally:
        network.FrozenEncoder.__call__ = encode  # type: ignore[method-assign]
    assert round.picks is not None
    export = folder / "labels.xml"
    export.write_text(cvat_xml(answers(round.folder / "picks.csv"), NAMES, palette(CLASSES)))
    import_(project_folder, [export])
    train(project_folder)
    (folder / "ready").touch()
    return project_folder


def answers(picks: Path) -> list[Any]:
    """What an annotator who knows the truth gives back for the picks."""
    import csv

    from alges_fast.annotation.exports import AnnotatedFrame, file_name
    from alges_fast.windows import Window

    windows: dict[str, list[Window]] = {}
    with picks.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            box = [int(row[name]) for name in ("x", "y", "width", "height")] if row["x"] else []
            windows.setdefault(row["frame"], []).extend([Window(row["frame"], *box)] if box else [])
    found, drawn = [], Drawn()
    for id, boxes in windows.items():
        video, second = int(id[:2]), round(float(id.split("@")[1].rstrip("s")))
        mask = drawn.mask(video, second)
        shown = mask if not boxes else np.full_like(mask, 255)
        for _, x, y, width, height in boxes:
            shown[y : y + height, x : x + width] = mask[y : y + height, x : x + width]
        found.append(AnnotatedFrame(file_name(id), shown, 1.0, boxes))
    return found


def measure(command: Sequence[str], checkout: Path, folder: Path, threads: int) -> dict[str, float]:
    """Run a command in a process of its own: seconds, CPU seconds, and peak resident memory in GB."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "ALGES_FAST_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": str(threads),
    }
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    shown = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{shown}")
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
    }


def measured(folder: Path, checkout: Path, threads: int, only: Sequence[str]) -> dict[str, dict[str, float]]:
    """Every command once, over a copy of the project."""
    from alges_fast.annotation.exports import cvat_xml
    from alges_fast.data.loading import palette

    scratch = folder / "scratch"
    steps = {
        "next, 256 windows": ["next", str(scratch), "-n", "1", "--regions", CELLS],
        "status": ["status", str(scratch)],
        "import of 256 windows": ["import", str(scratch), str(folder / "windows.xml"), "--accept_untouched"],
        "next, 20 frames": ["next", str(scratch), "-n", "20", "--strategy", "alges-img"],
    }
    found: dict[str, dict[str, float]] = {}
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder / "project", scratch)
    for name, step in steps.items():
        if only and not any(part in name for part in only):
            continue
        if name == "next, 20 frames":
            shutil.rmtree(scratch)
            shutil.copytree(folder / "project", scratch)
        if step[0] == "import":
            picks = sorted((scratch / "rounds").iterdir())[-1] / "picks.csv"
            (folder / "windows.xml").write_text(cvat_xml(answers(picks), NAMES, palette(CLASSES)))
        found[name] = measure(["-m", "alges_fast.project", *step], checkout, folder, threads)
        print(f"  {name:24} {found[name]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[3600])
    parser.add_argument("--folder", type=Path, default=Path("bench_video"), help="what is drawn is kept there")
    parser.add_argument("--against", type=Path, help="another checkout, measured first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="parts of commands' names")
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    results = {}
    for n_frames in settings.frames:
        folder = (settings.folder / str(n_frames)).resolve()
        os.environ["ALGES_FAST_CACHE"] = str(folder / "cache")
        prepare(folder, n_frames)
        for name, checkout in (("before", settings.against), ("now", ROOT)):
            if checkout is not None:
                print(f"{n_frames} frames, {name}", flush=True)
                results[f"{n_frames} {name}"] = measured(folder, checkout.resolve(), settings.threads, settings.only)
    if settings.json is not None:
        settings.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
