"""The loader of m2caiSeg on a small tree in its layout."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alges_fast.data import load_dataset
from alges_fast.data.layouts.m2caiseg import COLOURS
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

from .trees import SIZE, m2caiseg_tree, save


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return m2caiseg_tree(tmp_path / "m2caiSeg", [*COLOURS.values()])


def test_colours_become_classes(tree: Path, tmp_path: Path) -> None:
    data = load_dataset("m2caiseg", root=tree, image_size=32, cache_dir=tmp_path)
    assert len(data.classes) == 19
    assert data.palette[data.classes.index("liver")] == (85, 170, 0)
    assert data.train.ids == ("train/1_1", "train/1_2", "train/1_3", "train/1_4")
    assert data.validation.ids == ("trainval/1_5", "trainval/1_6")
    assert data.test.ids == ("test/1_7", "test/1_8")
    for frames in (data.train, data.test):
        for name, mask in zip(frames.ids, frames.masks, strict=True):
            split, stem = name.split("/")
            with Image.open(tree / split / "groundtruth" / f"{stem}_gt.png") as picture:
                colours = np.asarray(picture.resize((32, 32), Image.Resampling.NEAREST))
            np.testing.assert_array_equal(np.array(data.palette)[mask], colours)


def test_colours_are_the_published_ones() -> None:
    published = """black 0 0 0, grasper 0 85 170, bipolar 0 85 255, hook 0 170 255, scissors 0 255 85,
    clipper 0 255 170, irrigator 85 0 170, specimen bag 85 0 255, trocars 170 85 85, clip 170 170 170, liver 85 170 0,
    gallbladder 85 170 255, fat 85 255 0, upper wall 85 255 170, artery 170 0 255, intestine 255 0 255, bile 255 255 0,
    blood 255 0 0, unknown 170 0 85"""
    assert [f"{name} {r} {g} {b}" for name, (r, g, b) in COLOURS.items()] == re.split(r",\s+", published)


def test_pairs_that_differ_in_size_are_noted(tree: Path, tmp_path: Path) -> None:
    notes = load_dataset("m2caiseg", root=tree, image_size=32, cache_dir=tmp_path).notes
    assert any(note.startswith("1 frame: mask of another size than its image") for note in notes)


def test_unknown_colours_are_not_labelled(tree: Path, tmp_path: Path) -> None:
    mask = np.zeros((*SIZE, 3), np.uint8)
    mask[:6] = (1, 2, 3)
    save(tree / "test/groundtruth/1_7_gt.png", mask)
    data = load_dataset("m2caiseg", root=tree, image_size=32, cache_dir=tmp_path)
    assert np.mean(data.test.masks[0] == UNLABELLED) == 0.25
    assert any(f"#010203 ({6 * SIZE[1]} px)" in note for note in data.notes)


def test_validation_without_trainval(tree: Path, tmp_path: Path) -> None:
    for path in (tree / "trainval").rglob("*.*"):
        path.unlink()
    for number in range(9, 15):
        save(tree / "train/images" / f"1_{number}.jpg", np.zeros((*SIZE, 3), np.uint8))
        save(tree / "train/groundtruth" / f"1_{number}_gt.png", np.zeros((*SIZE, 3), np.uint8))
    data = load_dataset("m2caiseg", root=tree, image_size=32, cache_dir=tmp_path)
    assert data.validation.ids == ("train/1_13", "train/1_14")
    assert len(data.train) == 8
    assert any("held out of train" in note for note in data.notes)


def test_faults(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folders train and test"):
        load_dataset("m2caiseg", root=tree / "train", image_size=32, cache_dir=tmp_path)
    (tree / "train/groundtruth/1_3_gt.png").unlink()
    with pytest.raises(UserError, match=r"1_3\.jpg: image without a mask"):
        load_dataset("m2caiseg", root=tree, image_size=32, cache_dir=tmp_path)
