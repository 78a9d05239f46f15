"""Synthetic video: the same frame from anywhere, CholecSeg8k's imbalance, near-duplicates inside a clip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alges_fast.data import Dataset, load_dataset, synthetic
from alges_fast.data.layouts.cholecseg8k import FRAMES_PER_VIDEO

# Percent of pixels per class id: counted over CholecSeg8k (Hong et al. 2020, arXiv 2012.12453) with the "alges" split;
# the paper draws them in its Fig. 3.
SHARES = {
    "train": (27.1, 20.1, 21.2, 1.6, 13.0, 1.9, 3.9, 0.74, 0.06, 1.8, 7.0, 0.02, 0.73),
    "validation": (30.3, 23.9, 19.6, 2.1, 13.9, 2.2, 0, 0, 0.01, 1.4, 6.0, 0, 0),
    "test": (21.6, 23.3, 23.0, 2.3, 19.8, 4.0, 0, 0, 0, 0, 5.3, 0, 0),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset("synthetic", image_size=96, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("split", SHARES)
def test_class_shares_are_those_of_cholecseg8k(data: Dataset, split: str) -> None:
    masks = getattr(data, split).masks
    shares = 100 * np.bincount(masks.ravel(), minlength=13) / masks.size
    for name, share, published in zip(data.classes, shares, SHARES[split], strict=True):
        assert (share == 0) == (published == 0), name
        assert abs(share - published) <= max(0.02, 0.2 * published), name


def test_split_by_video_as_the_paper(data: Dataset) -> None:
    videos = [set(part.videos) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in videos] == [8, 4, 5]
    assert not videos[0] & videos[1] | videos[0] & videos[2] | videos[1] & videos[2]
    other = synthetic.plan(full=False, split="endovit", seed=0)
    assert {frame.video for frame in other["test"]} == {"video12", "video27"}


def test_a_frame_does_not_depend_on_what_was_drawn_before() -> None:
    frames = synthetic.plan(full=False, split="alges", seed=3)["train"]
    chosen = [frames[0], frames[101], frames[-1]]
    first = [synthetic.draw(frame, (40, 56)) for frame in chosen]
    script = (
        "import sys; from alges_fast.data import synthetic\n"
        "frames = synthetic.plan(full=False, split='alges', seed=3)['train']\n"
        "for i in (-1, 101, 0):\n"
        "    image, mask = synthetic.draw(frames[i], (40, 56))\n"
        "    sys.stdout.buffer.write(image.tobytes() + mask.tobytes())\n"
    )
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert elsewhere == b"".join(image.tobytes() + mask.tobytes() for image, mask in reversed(first))


def test_seeds_differ() -> None:
    frames = [synthetic.plan(full=False, split="alges", seed=seed)["train"][0] for seed in (0, 1)]
    pictures = [synthetic.draw(frame, (48, 48))[0].astype(int) for frame in frames]
    assert np.abs(pictures[0] - pictures[1]).mean() > 10


def test_the_demonstration_is_part_of_the_full_set() -> None:
    full = {frame.id: frame for frames in synthetic.plan(full=True, split="alges", seed=0).values() for frame in frames}
    demo = [frame for frames in synthetic.plan(full=False, split="alges", seed=0).values() for frame in frames]
    assert len(full) == sum(FRAMES_PER_VIDEO.values()) == 8080
    assert len(demo) == 540
    assert all(full[frame.id] == frame for frame in demo)


def test_frames_of_a_clip_are_near_duplicates(data: Dataset) -> None:
    """Consecutive frames are closer than frames of two clips of a video, and those than frames of two videos."""
    images, clips, videos = data.train.images.astype(np.float32), data.train.clips, data.train.videos
    within, across_clips, across_videos = [], [], []
    for i in range(0, len(clips) - 1, 5):
        distance = np.abs(images[i] - images[i + 1]).mean()
        (within if clips[i] == clips[i + 1] else []).append(distance)
        for j in range(i + 1, len(clips), 37):
            kind = across_videos if videos[i] != videos[j] else across_clips if clips[i] != clips[j] else []
            kind.append(np.abs(images[i] - images[j]).mean())
    assert 1 < np.mean(within) < 0.3 * np.mean(across_clips)
    assert np.mean(across_clips) < 0.9 * np.mean(across_videos)


def test_the_scene_is_in_the_picture(data: Dataset) -> None:
    """Outside the field of view is black; tools are grey, blood and liver red, fat yellow: classes can be learnt."""
    images = data.train.images.transpose(0, 2, 3, 1).reshape(-1, 3).astype(np.float32)
    masks = data.train.masks.ravel()
    colour = {name: images[masks == k].mean(0) for k, name in enumerate(data.classes)}
    assert colour["black background"].max() < 12
    assert np.ptp(colour["grasper"]) < 30
    for name in ("liver", "blood"):
        red, green, blue = colour[name]
        assert red > 1.5 * green > blue
    red, green, blue = colour["fat"]
    assert min(red, green) > 1.2 * blue


@pytest.mark.parametrize("size", [(24, 24), (96, 171)])
def test_any_size(size: tuple[int, int]) -> None:
    frame = synthetic.plan(full=False, split="alges", seed=0)["test"][5]
    image, mask = synthetic.draw(frame, size)
    assert image.shape == (3, *size)
    assert mask.shape == size
    assert 0.1 < np.mean(mask == 0) < 0.4


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_dataset(
        "synthetic", image_size=16, cache_dir=tmp_path, progress=lambda what, done, total: calls.append((done, total))
    )
    assert calls == [(i, 540) for i in range(1, 541)]
