"""What the experiment stores for the report comes back as it was, and never half."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from alges_fast.report.artefacts import (
    DatasetSummary,
    FrameMaps,
    PickRecord,
    class_shares,
    load_dataset,
    load_frames,
    load_picks,
    load_thumbnails,
    save_dataset,
    save_frames,
    save_thumbnails,
)


def frame_maps(n: int = 2, *, size: int = 8, round_: int = 3) -> FrameMaps:
    generator = np.random.default_rng(0)
    return FrameMaps(
        strategy="alges-img",
        seed=1,
        round=round_,
        ids=tuple(f"video01/frame_{i}" for i in range(n)),
        images=generator.integers(0, 256, (n, 3, size, size), dtype=np.uint8),
        masks=generator.integers(0, 3, (n, size, size), dtype=np.uint8),
        predictions=generator.integers(0, 3, (n, size, size), dtype=np.uint8),
        norm_maps=generator.random((n, size, size)).astype(np.float16),
    )


def test_nothing_stored_reads_as_nothing(tmp_path: Path) -> None:
    assert load_dataset(tmp_path) is None
    assert (load_frames(tmp_path), load_thumbnails(tmp_path), load_picks(tmp_path)) == ([], {}, [])


def test_dataset_comes_back_with_its_class_shares(tmp_path: Path) -> None:
    masks = np.array([[[0, 0], [1, 255]], [[2, 2], [2, 2]]], dtype=np.uint8)
    split = type("Split", (), {"masks": masks, "__len__": lambda self: 2})()
    assert class_shares(masks, 3) == (2 / 8, 1 / 8, 4 / 8)
    facts = {"name": "toy", "classes": ("background", "liver", "blood"), "notes": ("mapped code 35 to ignore",)}
    facts["palette"] = ((0, 0, 0), (200, 0, 0), (255, 0, 0))
    save_dataset(tmp_path, SimpleNamespace(**facts, train=split, validation=split, test=split))
    splits = ("train", "validation", "test")
    shares = dict.fromkeys(splits, (0.25, 0.125, 0.5))
    assert load_dataset(tmp_path) == DatasetSummary(**facts, frames=dict.fromkeys(splits, 2), shares=shares)


def test_frames_come_back_sorted_by_round(tmp_path: Path) -> None:
    for round_ in (11, 3):
        save_frames(tmp_path, frame_maps(round_=round_))
    early, late = load_frames(tmp_path)
    assert (early.round, late.round) == (3, 11)
    for name, value in vars(frame_maps()).items():
        np.testing.assert_array_equal(getattr(early, name), value)


def test_frames_of_wrong_shapes_are_refused(tmp_path: Path) -> None:
    bad = FrameMaps(**{**vars(frame_maps()), "predictions": np.zeros((2, 8, 9), np.uint8)})
    with pytest.raises(ValueError, match=r"predictions is \(2, 8, 9\); expected \(2, 8, 8\)"):
        save_frames(tmp_path, bad)


@pytest.mark.parametrize("size", [64, 100, 224, 40])
def test_a_thumbnail_keeps_the_picture(tmp_path: Path, size: int) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, size), (3, size, size)).astype(np.uint8)
    save_thumbnails(tmp_path, [("a", ramp), ("b", ramp.transpose(0, 2, 1))])
    stored = load_thumbnails(tmp_path)
    assert list(stored) == ["a", "b"]
    assert stored["a"].shape == (3, 64, 64)
    expected = np.broadcast_to((np.arange(64) + 0.5) / 64 * 255, (3, 64, 64))
    assert np.abs(stored["a"] - expected).max() < 1.5 * 255 / min(size, 64)
    np.testing.assert_array_equal(stored["b"], stored["a"].transpose(0, 2, 1))


def test_equal_contents_give_equal_bytes_and_leave_no_temporary_file(tmp_path: Path) -> None:
    for out in (tmp_path / "one", tmp_path / "two"):
        save_frames(out, frame_maps())
        save_thumbnails(out, [("a", frame_maps().images[0])])
    files = [sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) for out in tmp_path.iterdir()]
    assert files[0] == files[1]
    assert [p.name for p in files[0]] == ["alges-img-seed1-round03.npz", "thumbnails.npz"]
    for path in files[0]:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_picks_are_read_in_order_of_rounds(tmp_path: Path) -> None:
    for round_, ids in ((10, ["c"]), (9, ["b", "a"])):
        folder = tmp_path / "random" / "seed0" / f"round{round_:02d}"
        folder.mkdir(parents=True)
        (folder / "picks.json").write_text(json.dumps({"ids": ids, "scores": {}}))
    assert load_picks(tmp_path) == [PickRecord("random", 0, 9, ("b", "a")), PickRecord("random", 0, 10, ("c",))]
