"""The loader of CholecSeg8k on files in its layout, encodings and faults included."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alges_fast.data import IGNORE, load_dataset, synthetic
from alges_fast.data.cholecseg8k import CLASSES, WATERSHED_CODES
from alges_fast.data.export import write_cholecseg8k
from alges_fast.errors import UserError


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
    assert {path.name for path in clip.glob("frame_728_*")} == {
        "frame_728_endo.png",
        "frame_728_endo_watershed_mask.png",
        "frame_728_endo_color_mask.png",
        "frame_728_endo_mask.png",
    }
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
            labelled = mask != IGNORE
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


def test_colour_mask_in_place_of_the_watershed_mask(tree: Path, tmp_path: Path) -> None:
    clip = tree / "video01/video01_00080"
    shutil.copy(clip / "frame_80_endo_color_mask.png", clip / "frame_80_endo_watershed_mask.png")
    with pytest.raises(UserError, match=r"frame_80_endo_watershed_mask.png: a colour mask"):
        load_dataset("cholecseg8k", root=tree, image_size=16, cache_dir=tmp_path)


def test_wrong_folder_and_wrong_split(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder video01, video09"):
        load_dataset("cholecseg8k", root=written / "video01", image_size=16, cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"split 'paper' is unknown: use one of alges, endovit"):
        load_dataset("cholecseg8k", root=written, split="paper", image_size=16, cache_dir=tmp_path)


def test_writing_needs_an_empty_folder(written: Path) -> None:
    with pytest.raises(UserError, match="not empty: give a new folder"):
        write_cholecseg8k(written, full=False, seed=0)
