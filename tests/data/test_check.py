"""`python -m alges_fast.data`: what it prints and the code it exits with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from alges_fast.data.__main__ import main
from alges_fast.data.export import write_cholecseg8k
from alges_fast.data.layouts.m2caiseg import COLOURS

from .trees import SIZE, folder_tree, m2caiseg_tree, save


def test_a_usable_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_tree(tmp_path / "frames")
    save(root / "train/masks/trainA_0.png", np.full(SIZE, 2, np.uint8))
    assert main(["check", str(root), "--ignore_index", "11"]) == 0
    printed = capsys.readouterr().out
    assert "folder (by its folders" in printed
    assert "usable: a run can read this tree as it is" in printed
    assert f"python -m alges_fast.run --dataset folder --data_root {root} --ignore_index 11" in printed
    rows = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["trainA", "train", "1", "3"] in rows
    assert ["all", "9"] in rows
    share = 100 * (2 * 2 / SIZE[0]) / 3  # two of three masks have two rows that are not labelled
    assert ["255", "not", "labelled", f"{share:.2f}", f"{1.5 * share:.2f}", f"{1.5 * share:.2f}"] in rows


def test_every_fault_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_tree(tmp_path / "frames")
    (root / "train/masks/trainA_1.png").unlink()
    (root / "test/images/testA_2.png").write_bytes(b"")
    assert main(["check", str(root), "--ignore_index", "11"]) == 2
    printed = capsys.readouterr().out
    assert "trainA_1.png: image without a mask" in printed
    assert "testA_2.png: empty (0 bytes)" in printed
    assert "not usable as it is" in printed
    assert "--on_bad_image skip" in printed


def test_masks_of_0_and_255_are_remarked_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_tree(tmp_path / "frames")
    for path in root.glob("*/masks/*"):
        save(path, 255 * np.eye(*SIZE, dtype=np.uint8))
    assert main(["check", str(root)]) == 2
    assert "255 is not labelled" in " ".join(capsys.readouterr().out.split())
    (root / "classes.txt").write_text("wall\ntool\n")
    assert main(["check", str(root)]) == 0
    assert "if 255 is a class, save it as 1" in " ".join(capsys.readouterr().out.split())


def test_photographs_lie_as_their_masks_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of what is stored fit; those of what viewers show do not, and what to do is said."""
    root = folder_tree(tmp_path / "frames")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    save(root / "train/images/trainA_1.png", np.zeros((*SIZE, 3), np.uint8), exif=exif)
    assert main(["check", str(root), "--ignore_index", "11"]) == 0
    assert "1 frame: image that its EXIF would turn" in " ".join(capsys.readouterr().out.split())
    save(root / "train/masks/trainA_1.png", np.zeros(SIZE[::-1], np.uint8))
    assert main(["check", str(root), "--ignore_index", "11"]) == 2
    assert "trainA_1.png: turned by its EXIF, and only its mask is upright" in capsys.readouterr().out


def test_a_tree_that_skipping_does_not_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_tree(tmp_path / "frames")
    for path in root.glob("val/*/*"):
        path.unlink()
    save(root / "train/masks/trainA_1.png", np.full(SIZE, 200, np.uint8))
    assert main(["check", str(root)]) == 2
    printed = capsys.readouterr().out
    assert "the validation split has no usable frame" in printed
    assert "do not look like class ids" in printed
    assert "not usable: mend these faults first" in printed


def test_a_layout_is_told_from_its_folders_or_none_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(m2caiseg_tree(tmp_path / "data", [*COLOURS.values()]))]) == 0
    assert "m2caiseg (by its folders" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "gone")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["check", str(tmp_path / "empty")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "gone: no such folder" in errors[0]
    assert "looks like none of cholecseg8k, folder, m2caiseg" in errors[1]
    root = folder_tree(tmp_path / "archive" / "frames")
    assert main(["check", str(root.parent)]) == 2
    assert f"give {root}, which does" in capsys.readouterr().err


def test_a_half_present_tree_says_what_is_missing_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "video"
    write_cholecseg8k(root, full=False, seed=0, height=27)
    for name in ("video09", "video25", "video55"):
        shutil.rmtree(root / name)
    assert main(["check", str(root)]) == 2
    printed = capsys.readouterr().out
    for name, part in (("video09", "train"), ("video55", "train"), ("video25", "test")):
        assert f"fault: {root / name}: no such folder: split alges has it in {part}" in printed
    assert "480 frames, where the published CholecSeg8k has 8080; by video: 01 80 of 1280, 09 0 of 240," in printed
    assert "not usable as it is: mend these faults, or run with --on_bad_image skip" in printed
    assert main(["check", str(root), "--split", "endovit"]) == 2
    assert f"{root / 'video25'}: no such folder: split endovit has it in train" in capsys.readouterr().out


def test_write_synthetic_then_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "video"
    assert main(["write-synthetic", str(root), "--layout", "cholecseg8k", "--height", "27"]) == 0
    assert main(["check", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "540 frames written" in printed
    assert "cholecseg8k (by its folders" in printed
    assert main(["write-synthetic", str(root), "--layout", "cholecseg8k"]) == 2


def test_help_teaches_the_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "frame_<n>_endo_watershed_mask.png" in printed
    assert "{train,val,test}/masks/<stem>.png" in printed
