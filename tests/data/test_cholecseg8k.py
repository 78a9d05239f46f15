"""The loader of CholecSeg8k on files in its layout, encodings and faults included."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alges_fast.data import load_dataset, synthetic
from alges_fast.data.export import write_cholecseg8k
from alges_fast.data.files import Faults
from alges_fast.data.layouts.cholecseg8k import CLASSES, PALETTE, WATERSHED_CODES, CholecSeg8k, read_watershed
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

from .trees import save


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cholecseg8k")
    assert write_cholecseg8k(root, full=False, seed=0, height=54) == 540
    return root


@pytest.fixture
def tree(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(written, tmp_path / "tree"))


def test_layout_and_encodings_are_the_published_ones(written: Path) -> None:
    clip = written / "video12" / "video12_00720"
    kinds = ("", "_watershed_mask", "_color_mask", "_mask")
    assert {path.name for path in clip.glob("frame_728_*")} == {f"frame_728_endo{kind}.png" for kind in kinds}
    modes, codes, framed = [], set(), 0
    for path in written.glob("*/*/*_watershed_mask.png"):
        with Image.open(path) as picture:
            modes.append(picture.mode)
            mask = np.asarray(picture)
        assert (mask[..., :3] == mask[..., :1]).all()
        codes |= set(np.unique(mask[..., 0]).tolist())
        framed += bool((mask[0] == 255).all())
    assert codes == {*WATERSHED_CODES, 0, 35, 36, 255}
    assert modes.count("RGBA") == 3
    assert modes.count("RGB") == 537
    assert 0.9 * 540 < framed < 540


@pytest.mark.parametrize("split", ["alges", "endovit"])
def test_masks_are_those_that_were_drawn(written: Path, tmp_path: Path, split: str) -> None:
    data = load_dataset("cholecseg8k", root=written, split=split, image_size=48, cache_dir=tmp_path)
    plan = synthetic.plan(full=False, split=split, seed=0)
    assert data.classes == CLASSES
    for part in ("train", "validation", "test"):
        frames = getattr(data, part)
        assert frames.ids == tuple(frame.id for frame in plan[part])
        assert frames.videos == tuple(frame.video for frame in plan[part])
        assert frames.clips == tuple(frame.clip for frame in plan[part])
        for frame in plan[part][::25]:
            drawn = Image.fromarray(synthetic.draw(frame, (54, 96))[1])
            expected = np.asarray(drawn.resize((48, 48), Image.Resampling.NEAREST))
            mask = frames.masks[frames.index(frame.id)]
            labelled = mask != UNLABELLED
            np.testing.assert_array_equal(mask[labelled], expected[labelled])
            assert labelled.mean() > 0.88


def test_unknown_codes_are_counted_and_reported(written: Path, tmp_path: Path) -> None:
    data = load_dataset("cholecseg8k", root=written, image_size=16, cache_dir=tmp_path)
    pixels = dict.fromkeys((0, 35, 36, 255), 0)
    for path in written.glob("*/*/*_watershed_mask.png"):
        with Image.open(path) as picture:
            values, counts = np.unique(np.asarray(picture)[..., 0], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value in pixels:
                pixels[value] += count
    note = next(note for note in data.notes if "not labelled" in note)
    assert all(f"{code} ({count} px)" in note for code, count in pixels.items())
    assert any(note.startswith("3 frames: mask is RGBA") for note in data.notes)
    assert any("540 frames, where the published CholecSeg8k has 8080" in note for note in data.notes)


def test_codes_and_colours_are_the_published_ones() -> None:
    published = """black background 50 127 127 127, abdominal wall 11 210 140 140, liver 21 255 114 114,
    gastrointestinal tract 13 231 70 156, fat 12 186 183 75, grasper 31 170 255 0, connective tissue 23 255 85 0,
    blood 24 255 0 0, cystic duct 25 255 255 0, L-hook electrocautery 32 169 255 184, gallbladder 22 255 160 165,
    hepatic vein 33 0 50 128, liver ligament 5 111 74 0"""
    ours = zip(CLASSES, WATERSHED_CODES, PALETTE, strict=True)
    assert [f"{name} {code} {r} {g} {b}" for name, code, (r, g, b) in ours] == re.split(r",\s+", published)


@pytest.mark.parametrize("channels", [3, 4], ids=["RGB", "RGBA"])
def test_a_mask_with_every_fault_at_once(tmp_path: Path, channels: int) -> None:
    codes = np.full((20, 30), 21, np.uint8)
    codes[5:8, 5:9], codes[10], codes[12, 3], codes[12, 4] = 31, 0, 35, 36
    codes[[0, -1]] = 255
    codes[:, [0, -1]] = 255
    picture = np.repeat(codes[..., None], channels, axis=2)
    if channels == 4:
        picture[..., 3] = np.arange(20)[:, None]  # alpha means nothing
    path = tmp_path / "frame_1_endo_watershed_mask.png"
    save(path, picture)
    with Image.open(path) as opened:
        reading = read_watershed(opened, path)
    expected = np.full((20, 30), UNLABELLED, np.uint8)
    expected[1:-1, 1:-1] = CLASSES.index("liver")
    expected[5:8, 5:9] = CLASSES.index("grasper")
    expected[10], expected[12, 3], expected[12, 4] = UNLABELLED, UNLABELLED, UNLABELLED
    np.testing.assert_array_equal(reading.ids, expected)
    assert reading.unknown == {"255": 2 * 30 + 2 * 18, "0": 28, "35": 1, "36": 1}


PUBLISHED_FRAMES = """01:1280 09:240 12:640 17:320 18:160 20:160 24:960 25:320 26:320 27:400 28:560 35:240 37:480 43:720
48:240 52:800 55:240"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names of the published files, in clips of 80, with nothing in them."""
    root = tmp_path_factory.mktemp("published")
    for video, frames in (entry.split(":") for entry in PUBLISHED_FRAMES.split()):
        for first in range(40, 40 + int(frames) * 4, 320):
            clip = root / f"video{video}" / f"video{video}_{first:05d}"
            clip.mkdir(parents=True)
            for number in range(first, first + 80):
                (clip / f"frame_{number}_endo.png").touch()
                (clip / f"frame_{number}_endo_watershed_mask.png").touch()
    return root


@pytest.mark.parametrize(
    ("split", "frames"),
    [
        ("alges", {"train": 4640, "validation": 1600, "test": 1840}),
        ("endovit", {"train": 5920, "validation": 1120, "test": 1040}),
    ],
)
def test_splits_of_the_published_tree_have_the_published_sizes(
    published: Path, split: str, frames: dict[str, int]
) -> None:
    faults = Faults("skip")
    listing = CholecSeg8k().listing(published, split, None, faults)
    assert {part: len(files) for part, files in listing.splits.items()} == frames
    assert (faults.messages, listing.notes) == ([], ())
    files = [file for part in listing.splits.values() for file in part]
    clips = [file.clip for file in files]
    assert len(set(clips)) == 101
    assert {clips.count(clip) for clip in set(clips)} == {80}
    videos = [{file.video for file in part} for part in listing.splits.values()]
    assert sum(map(len, videos)) == len(set.union(*videos)) == 17
    for clip in ("video01_00040", "video01_00360"):  # 99 comes before 100
        numbers = [int(file.id.rpartition("_")[2]) for file in files if file.clip == clip]
        assert numbers == sorted(numbers)


def test_what_was_written_by_us_says_that_it_is_not_cholecseg8k(written: Path, published: Path) -> None:
    notes = CholecSeg8k().listing(written, "alges", None, Faults("stop")).notes
    assert "synthetic video in CholecSeg8k's layout, not CholecSeg8k" in notes[0]
    assert not any(
        "synthetic" in note for note in CholecSeg8k().listing(published, "alges", None, Faults("stop")).notes
    )


@pytest.mark.parametrize("fault", ["mask of 48 x 27, its image 96 x 54", "a colour mask"])
def test_a_mask_that_cannot_be_its_images_is_a_fault(tree: Path, tmp_path: Path, fault: str) -> None:
    clip = tree / "video01/video01_00080"
    mask = clip / "frame_80_endo_watershed_mask.png"
    with Image.open(mask) as picture:
        smaller = picture.resize((48, 27), Image.Resampling.NEAREST)
    smaller.save(mask) if "48" in fault else shutil.copy(clip / "frame_80_endo_color_mask.png", mask)
    with pytest.raises(UserError, match=f"frame_80_endo_watershed_mask.png: {fault}"):
        load_dataset("cholecseg8k", root=tree, image_size=16, cache_dir=tmp_path)


def test_missing_video_and_missing_mask(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / "video09")
    missing = tree / "video25/video25_00080/frame_88_endo_watershed_mask.png"
    missing.unlink()
    with pytest.raises(UserError, match=r"video09: no such folder: split alges has it in train"):
        load_dataset("cholecseg8k", root=tree, image_size=16, cache_dir=tmp_path)
    data = load_dataset("cholecseg8k", root=tree, image_size=16, cache_dir=tmp_path, on_bad_image="skip")
    assert "video09" not in data.train.videos
    assert "video25_00080/frame_88" not in data.test.ids
    left_out = [note for note in data.notes if note.startswith("left out")]
    assert len(left_out) == 2
    assert "frame_88_endo.png: image without a mask" in left_out[1]


def test_wrong_folder_and_wrong_split(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder video01, video09"):
        load_dataset("cholecseg8k", root=written / "video01", image_size=16, cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"split 'paper' is unknown: use one of alges, endovit"):
        load_dataset("cholecseg8k", root=written, split="paper", image_size=16, cache_dir=tmp_path)
    with pytest.raises(UserError, match="not empty: give a new folder"):
        write_cholecseg8k(written, full=False, seed=0)
