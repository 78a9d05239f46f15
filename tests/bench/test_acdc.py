"""bench/acdc.py makes a folder data set that the package reads: split by patient, square, ids kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alges_fast.data import load_dataset

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "acdc.py"


def test_slices_become_a_folder_data_set(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="needs the extra `bench`")
    generator = np.random.default_rng(0)
    for patient in (1, 2, 7, 9):
        for index in range(2):
            labels = np.zeros((24, 20), np.uint8)
            labels[2:8, 4:10] = 1
            labels[10:16, 8:14] = 2
            labels[12:14, 2:5] = 3
            with h5py.File(tmp_path / f"patient{patient:03d}_frame01_slice_{index}.h5", "w") as file:
                file["image"] = generator.random((24, 20), np.float32)
                file["label"] = labels
    root = tmp_path / "tree"
    subprocess.run([sys.executable, SCRIPT, tmp_path, root], check=True, capture_output=True)

    found = load_dataset("folder", root=str(root), image_size=20)
    assert (len(found.train), len(found.validation), len(found.test)) == (4, 2, 2)
    assert found.classes == ("background", "right ventricle", "myocardium", "left ventricle")
    assert set(found.train.videos) == {"patient001", "patient002"}
    np.testing.assert_array_equal(found.test.masks[0], labels[2:22])


def test_it_refuses_to_write_into_the_repository() -> None:
    ran = subprocess.run([sys.executable, SCRIPT, "x", SCRIPT.parent / "acdc"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "outside" in ran.stderr
