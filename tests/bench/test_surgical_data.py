"""bench/endoscapes.py and bench/endovis.py make folder data sets that the package reads: splits and ids kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.trees import save

from alges_fast.data import load_dataset

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.parametrize("gathered", [False, True])
def test_endoscapes_keeps_its_split_and_leaves_other_objects_unlabelled(tmp_path: Path, gathered: bool) -> None:
    split_of = {"1_5": "train", "1_10": "train", "2_5": "val", "3_5": "test"}
    mask = np.repeat(np.array([0, 1, 2, 3, 4, 5, 6, 7, 255], np.uint8), 2)[None].repeat(9, 0)
    for stem, split in split_of.items():
        image, classes = ("REAL", "GROUND_TH") if gathered else (f"{split}_seg", "semseg")
        save(tmp_path / image / f"{stem}.jpg", np.full((9, 18, 3), 90, np.uint8))
        save(tmp_path / classes / f"{stem}.png", mask)
    if gathered:
        listed = {stem: {"folders": ["semseg", split]} for stem, split in split_of.items()}
        (tmp_path / "matches.json").write_text(json.dumps(listed))
    _convert("endoscapes.py", tmp_path, tmp_path / "tree")

    made = load_dataset("folder", root=str(tmp_path / "tree"), image_size=18)
    assert (len(made.train), len(made.validation), len(made.test)) == (2, 1, 1)
    assert set(made.train.videos) == {"1"}
    assert made.classes[1:3] == ("cystic plate", "Calot's triangle")
    np.testing.assert_array_equal(made.test.masks[0][0], [*np.repeat(np.arange(7), 2), 255, 255, 255, 255])


@pytest.mark.parametrize(("test", "validation"), [(1, 2), (4, 1)])
def test_endovis_holds_out_operations(tmp_path: Path, test: int, validation: int) -> None:
    values = np.array([0, 70, 160, 255], np.uint8).repeat(4)[None].repeat(16, 0)
    for operation in range(1, 5):
        for number in ("01", "02"):
            save(tmp_path / f"OP{operation}/Raw/img_{number}_raw.png", np.full((16, 16, 3), operation, np.uint8))
            opaque = np.dstack([values, values, values, np.full_like(values, 255)])  # as one of the real masks is
            save(tmp_path / f"OP{operation}/Masks/img_{number}_class.png", opaque if number == "02" else values)
    _convert("endovis.py", tmp_path, tmp_path / "tree", "--test", str(test))

    made = load_dataset("folder", root=str(tmp_path / "tree"), image_size=16)
    assert (set(made.validation.videos), set(made.test.videos)) == ({f"op{validation}"}, {f"op{test}"})
    assert (len(made.train), len(made.validation), len(made.test)) == (4, 2, 2)
    assert not {f"op{test}", f"op{validation}"} & set(made.train.videos)
    for mask in made.test.masks:
        np.testing.assert_array_equal(mask[0], np.repeat([0, 1, 2, 255], 4))


@pytest.mark.parametrize("command", [("endoscapes.py",), ("endovis.py", "--test", "1")])
def test_a_folder_that_is_not_theirs_is_refused_in_a_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    script, *flags = command
    ran = subprocess.run(
        [sys.executable, BENCH / script, tmp_path, tmp_path / "tree", *flags], capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1
    assert "give the folder" in ran.stderr


def _convert(script: str, *arguments: Path | str) -> None:
    subprocess.run([sys.executable, BENCH / script, *arguments], check=True, capture_output=True)
