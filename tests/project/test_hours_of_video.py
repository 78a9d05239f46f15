"""Two videos of an hour each, from nothing to two rounds of labels."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.project.annotators import CLASSES, Annotator, rows_of, run, said

HOUR, WIDTH, HEIGHT = 3600, 64, 48


def drawn(video: int, second: float) -> NDArray[np.uint8]:
    """What is true: a vessel that sinks and rises within minutes, and a tool that goes to and fro before it."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    y = round(18 + 14 * np.sin(second / 300 + video))
    x = round(24 + 20 * np.sin(second / 130 + 2 * video))
    mask[y : y + 8] = 1
    if second % 900 < 700:  # then it is out of sight
        mask[y // 2 : y // 2 + 16, x : x + 14] = 2
    return mask


class Truth(dict[str, NDArray[np.uint8]]):
    def __missing__(self, id: str) -> NDArray[np.uint8]:
        video, second = re.fullmatch(r"op(\d)\.mp4@([\d.]+)s", id).groups()  # type: ignore[union-attr]
        return drawn(int(video), float(second))


def write_video(path: Path, video: int) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    generator = np.random.default_rng(video)
    colours = np.array([(150, 90 + 30 * video, 80), (90, 20, 20), (220, 220, 230)], np.float64)
    noise = generator.normal(0, 8, (16, HEIGHT, WIDTH, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 200_000
        for second in range(HOUR):
            picture = colours[drawn(video, second)] * (1 - 0.2 * np.sin(second / 500)) + noise[second % 16]
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def picks(number: int) -> list[dict[str, str]]:
    return rows_of(Path(f"p/rounds/{number:03d}/picks.csv"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hours_of_video_through_two_rounds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("videos").mkdir()
    for video in (1, 2):
        write_video(Path(f"videos/op{video}.mp4"), video)
    annotator = Annotator(Truth(), CLASSES)
    given = ["--images", "videos", "--classes", ",".join(CLASSES), "--fps", "0.1", "--image_size", "64"]
    run("new", "p", *given, "--feature_bits", "8")

    run("next", "p", "-n", "14", "--consider", "200")
    record = json.loads(Path("p/rounds/000/round.json").read_text())
    assert record["considered"] == [200, 720, 0]
    frames = [(row["video"], float(row["frame"].partition("@")[2].rstrip("s"))) for row in picks(0)]
    assert {video for video, _ in frames} == {"op1.mp4", "op2.mp4"}
    for video, times in itertools.groupby(sorted(frames), key=lambda frame: frame[0]):
        seconds = [second for _, second in times]
        assert max(seconds) - min(seconds) > HOUR / 3, video
    annotator.answer(0)

    asked = ["-n", "2", "--regions", "4x4", "--strategy", "alges-effort", "--consider", "150", "--thin", "0.1"]
    run("next", "p", *asked)
    considered, open_, thinned = json.loads(Path("p/rounds/001/round.json").read_text())["considered"]
    assert considered == min(150, open_)
    assert 0 < thinned < 720
    assert len(picks(1)) == 32
    assert {row["frame"] for row in picks(1)}.isdisjoint(row["frame"] for row in picks(0))
    annotator.answer(1, "--accept_untouched")
    text = said(capsys, "status", "p")
    assert "720 frames of 2 videos" in text
    assert f"{thinned:,} near-duplicates left out" in text
    assert "of the frames have another of their video within" in text
    rows = rows_of(Path("p/history.csv"))
    assert [row["windows"] for row in rows] == ["0", "32"]
    assert float(rows[1]["dice"]) > 0.7
