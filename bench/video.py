"""Rounds of a project over hours of video: seconds, CPU seconds and peak memory of each command, each in a process.

Videos of an hour at one frame a second are encoded, small and plain; what the packaged encoder would make of their
frames is drawn instead: fields of 13 classes that move slowly, a blend of one prototype of 32 components a class, and
noise; with their means around every place and the coordinates 56 x 56 x 68 float16 a frame. One hour is drawn, 1.5 GB.
The others are the same bytes read from 512 positions further on for each, so that no two hours have a window in common:
in the cache lies a file of the full length without blocks on the disk, and the measured process maps the hour over it,
as often as there are hours. So nothing waits for a disk, and the maps are in memory once. The pool's decoded pictures,
which no measured command reads, are a sparse file. The head is trained by `project train` on 20 frames labelled by the
field.

    python bench/video.py --frames 3600 15300 61200 --first_pass --json bench/results/video.json
    python bench/video.py --frames 15300 --processes

With --against the commands of another checkout run before this one's, over the same files, where it can read them. With
--first_pass the encoder runs over pictures alone and on its way into the cache. With --processes one process and two
choose the same windows, a thread each.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import mmap
import os
import platform
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alges_fast import cached_rows

ROOT = Path(__file__).resolve().parents[1]
SIDE, GRID, COMPONENTS, CLASSES, WAVES, HOUR = 224, 56, 32, 13, 12, 3600
CHANNELS = 2 * COMPONENTS + 4
REACH = 11
"""Side of the square that a place's mean is over."""
STEP = 512
"""Positions of a map that an hour begins after the one before: whole pages of memory."""
MORE = 4
"""Frames that are drawn beyond an hour, for those that begin later."""
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
        self.prototypes = _prototypes() + 0.3 * generator.normal(size=(CLASSES, COMPONENTS)).astype(np.float32)

    def heights(self, second: int) -> NDArray[np.float32]:
        """(3136, 13): how much there is of each class at each place."""
        moved = self.amplitudes * np.exp(1j * self.speeds * second)
        heights: NDArray[np.float32] = (moved @ self.waves).real.T.astype(np.float32)
        return heights

    def mask(self, video: int, second: int) -> NDArray[np.uint8]:
        """(224, 224) class ids."""
        frames, at = divmod(STEP * video, GRID**2)
        two = np.concatenate([self.heights(second + frames + more).argmax(1) for more in range(2)])
        classes = two[at:][: GRID**2].reshape(GRID, GRID).astype(np.uint8)
        return classes.repeat(SIDE // GRID, 0).repeat(SIDE // GRID, 1)

    def features(self, second: int) -> NDArray[np.float16]:
        """(56, 56, 68)."""
        from scipy import ndimage  # here, as no command imports it that is measured

        heights = 3 * self.heights(second)
        shares = np.exp(heights - heights.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        clean = (shares @ self.prototypes).reshape(GRID, GRID, COMPONENTS)
        noise = _noise()[second * 31 % len(_noise())]
        places = clean + np.roll(noise, (second * 7 % GRID, second * 13 % GRID), (0, 1))
        means = ndimage.uniform_filter(places, (REACH, REACH, 1), mode="nearest")
        across = np.broadcast_to((2 * np.arange(GRID, dtype=np.float32) + 1) / GRID - 1, (GRID, GRID))
        coordinates = np.stack([across, across.T, across**2, across.T**2], 2)
        return np.concatenate([places, means, coordinates], 2).astype(np.float16)


@cache
def _prototypes() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(CLASSES, COMPONENTS)).astype(np.float32)


@cache
def _noise() -> NDArray[np.float32]:
    return (0.8 * np.random.default_rng(2).standard_normal((97, GRID, GRID, COMPONENTS))).astype(np.float32)


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


def write_sparse(place: Path, name: str, dtype: str, shape: Sequence[int]) -> None:
    """An array of zeros in the cache's format (alges_fast/cached_rows.py), without blocks on the disk."""
    row = np.dtype(dtype).itemsize * math.prod(shape[1:])
    place.mkdir(parents=True, exist_ok=True)
    with (place / f"{name}.rows").open("wb") as file:
        file.truncate(shape[0] * row)
    np.full(shape[0], zlib.crc32(bytes(row)), "<u4").tofile(place / f"{name}.crc")
    index = {"format": 1, "arrays": {name: [dtype, list(shape)]}, "facts": {"reasons": {}}}
    (place / "index.json").write_text(json.dumps(index))


def drawn_hour(folder: Path, n: int) -> Path:
    """The file of n maps (56, 56, 68) float16 and some more, drawn once."""
    path = folder / f"hour-{n}.rows"
    if not path.exists():
        drawn = Drawn()
        with path.with_suffix(".draft").open("wb") as file:
            for second in range(n + MORE):
                file.write(drawn.features(second).tobytes())
        path.with_suffix(".draft").rename(path)
    return path


def map_hours_over(hour: Path) -> None:
    """From now on have this process read the hour in the place of features in the cache."""
    mapped = cached_rows._mapped
    frame = 2 * CHANNELS * GRID**2
    n_drawn = hour.stat().st_size // frame - MORE
    map_at = ctypes.CDLL(None, use_errno=True).mmap
    map_at.restype = ctypes.c_void_p
    map_at.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long

    def with_hours(place: Path, name: str, *more: Any) -> Any:
        rows = mapped(place, name, *more)
        if name == "features":
            with hour.open("rb") as file:
                for number, start in enumerate(range(0, len(rows), n_drawn)):
                    at, size = rows.ctypes.data + start * frame, min(n_drawn, len(rows) - start) * frame
                    flags = mmap.MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, file.fileno(), number * 2 * CHANNELS * STEP
                    assert map_at(at, size, mmap.PROT_READ | mmap.PROT_WRITE, *flags) == at, os.strerror(
                        ctypes.get_errno()
                    )
        return rows

    cached_rows._mapped = with_hours


MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000


def prepare(folder: Path, n_frames: int) -> Path:
    """The project, features in the cache, one round labelled and a head trained; what is there is not made again."""
    from alges_fast.annotation import decoded
    from alges_fast.annotation.exports import cvat_xml
    from alges_fast.annotation.sources import LeftOut
    from alges_fast.data.loading import palette
    from alges_fast.models import features_cache
    from alges_fast.progress import silent
    from alges_fast.project import NextSettings, ProjectConfig, import_, network, new, next_round, train
    from alges_fast.project.folder import opened
    from alges_fast.project.near_duplicates import note_likeness
    from alges_fast.project.pool import list_pool

    project_folder = folder / "project"
    if (folder / "ready").exists():
        return project_folder
    shutil.rmtree(folder / "project", ignore_errors=True)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for video, start in enumerate(range(0, n_frames, HOUR)):
        path, seconds = folder / "videos" / f"{video:02d}.mp4", min(HOUR, n_frames - start)
        if video and seconds == HOUR:
            shutil.copy(folder / "videos" / "00.mp4", path)
        else:
            write_video(path, seconds)
    new(project_folder, ProjectConfig(images=str(folder / "videos"), classes=NAMES))
    with opened(project_folder) as project:
        frames = list_pool(project).frames
    assert len(frames) == n_frames, len(frames)
    place = folder / "cache" / f"pool-{SIDE}-{decoded._key(frames, SIDE)}"
    write_sparse(place, "images", "|u1", (n_frames, 3, SIDE, SIDE))
    map_hours_over(drawn_hour(folder.parent, min(n_frames, HOUR)))
    load_or_make = features_cache.load_or_make

    def load_drawn(place: Path, *made: Any, **more: Any) -> Any:
        if not place.exists():
            write_sparse(place, "features", "<f2", (n_frames, GRID, GRID, CHANNELS))
        return load_or_make(place, *made, **more)

    features_cache.load_or_make = load_drawn
    round = next_round(project_folder, NextSettings(n=20, strategy="random"))
    assert round.picks is not None
    export = folder / "labels.xml"
    export.write_text(cvat_xml(answers(round.folder / "picks.csv"), NAMES, palette(CLASSES)))
    import_(project_folder, [export])
    train(project_folder)
    features_cache.load_or_make = load_or_make
    with opened(project_folder) as project:  # as the first round that looks at a pool does, once
        pool, images = decoded.decoded_images(list_pool(project).frames, SIDE, LeftOut("stop"))
        maps = network.frozen(project, pool, images).maps
        note_likeness(project, maps, [frame.video for frame in pool], silent)
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


def run_over(hour: Path, command: Sequence[str]) -> None:
    """A command of the project, or `select`, over these maps, as `python -m` runs it."""
    map_hours_over(hour)
    selects = command[0] == "select"
    sys.argv[1:] = command[1:] if selects else command
    runpy.run_module("alges_fast.select" if selects else "alges_fast.project", run_name="__main__")


def first_pass(n: int = 48) -> dict[str, float]:
    """CPU seconds of the packaged encoder over n pictures: alone, and on the way into the cache."""
    import torch

    from alges_fast.models.features_cache import FrozenEncoder, _batch, load_or_fit
    from alges_fast.models.frozen import build_trunk
    from alges_fast.models.weights import PACKAGED, PACKAGED_ENCODER

    torch.set_num_threads(1)
    images = np.random.default_rng(3).integers(0, 256, (n, 3, SIDE, SIDE), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        made = load_or_fit(build_trunk(PACKAGED_ENCODER, PACKAGED), images[:8], cache_dir=Path(folder))
        view = made.projection.view
        shown = np.random.default_rng(4).integers(0, 256, (n, 3, view.scale * SIDE, view.scale * SIDE), np.uint8)
        encoder = FrozenEncoder(made.trunk.built(), made.projection, Path(folder))
        step = _batch(encoder.trunk, view, images)
        encoder(torch.from_numpy(shown[:step]))
        start = time.process_time()
        for at in range(0, n, step):
            encoder(torch.from_numpy(shown[at : at + step]))
        alone = time.process_time() - start
        start = time.process_time()
        encoder.cached(images, pictures=lambda positions, side: shown[list(positions)])
        through = time.process_time() - start
    return {"frames": n, "encoder_cpu_seconds": round(alone, 2), "first_pass_cpu_seconds": round(through, 2)}


def processes(folder: Path) -> dict[str, dict[str, float]]:
    """The same windows chosen by one process and by two."""
    found = {}
    hour = drawn_hour(folder.parent, min(int(folder.name), HOUR))
    scratch = folder / "scratch"
    command = ["--images", str(folder / "videos"), "--out", str(scratch), "--classes", ",".join(NAMES), "-n", "1"]
    command += ["--regions", CELLS, "--strategy", "alges-effort"]
    for n in (1, 2):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(folder / "project", scratch)
        launch = [] if n == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(n)]
        found[f"select, {n} processes"] = measure(
            [*launch, __file__, "--over", str(hour), "select", *command], ROOT, folder, 1
        )
        print(f"  {n} processes {found[f'select, {n} processes']}", flush=True)
    return found


def machine() -> dict[str, Any]:
    """What figures are of."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


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
        "next, 256 windows": ["next", str(scratch), "-n", "1", "--regions", CELLS, "--strategy", "alges-effort"],
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
        hour = drawn_hour(folder.parent, min(int(folder.name), HOUR))
        found[name] = measure([__file__, "--over", str(hour), *step], checkout, folder, threads)
        print(f"  {name:24} {found[name]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="*", default=[3600])
    parser.add_argument("--folder", type=Path, default=Path("bench_video"), help="what is drawn is kept there")
    parser.add_argument("--against", type=Path, help="another checkout, measured first")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first_pass", action="store_true")
    parser.add_argument("--processes", action="store_true", help="measure one process and two, in place of commands")
    parser.add_argument("--only", nargs="*", default=[], help="parts of commands' names")
    parser.add_argument("--json", type=Path)
    if sys.argv[1:2] == ["--over"]:
        run_over(Path(sys.argv[2]), sys.argv[3:])
    settings = parser.parse_args()
    results: dict[str, Any] = {}
    if settings.json is not None and settings.json.exists():
        results = json.loads(settings.json.read_text())  # what is measured now takes the place of what was
    results["machine"] = machine()

    def keep() -> None:
        if settings.json is not None:
            settings.json.write_text(json.dumps(results, indent=1) + "\n")

    if settings.first_pass:
        results["first pass"] = first_pass()
        print(f"first pass {results['first pass']}", flush=True)
        keep()
    for n_frames in settings.frames:
        folder = (settings.folder / str(n_frames)).resolve()
        os.environ["ALGES_FAST_CACHE"] = str(folder / "cache")
        prepare(folder, n_frames)
        if settings.processes:
            results[f"{n_frames} frames, processes"] = processes(folder)
            keep()
            continue
        for name, checkout in ((", before", settings.against), ("", ROOT)):
            if checkout is not None:
                print(f"{n_frames} frames{name}", flush=True)
                results[f"{n_frames} frames{name}"] = measured(
                    folder, checkout.resolve(), settings.threads, settings.only
                )
                keep()


if __name__ == "__main__":
    main()
