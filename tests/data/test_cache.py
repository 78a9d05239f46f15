"""The decoded cache: keyed by content, whole or absent, never trusted blindly."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from alges_fast.data import Dataset, load_dataset
from alges_fast.errors import UserError
from tests.commands import CONTEXT, finish

from .trees import folder_tree, save


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return folder_tree(tmp_path / "frames")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(tree: Path, cache: Path | None, size: int = 16) -> tuple[Dataset, int]:
    """The data set, and how many frames were decoded for it."""
    decoded: list[int] = []
    data = load_dataset(
        "folder",
        root=tree,
        image_size=size,
        ignore_index=11,
        cache_dir=cache,
        progress=lambda what, done, total: decoded.append(done),
    )
    return data, len(decoded)


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_decoded_once_and_mapped(tree: Path, cache: Path) -> None:
    first, decoded = load(tree, cache)
    again, decoded_again = load(tree, cache)
    assert (decoded, decoded_again) == (9, 0)
    assert isinstance(again.train.images, np.memmap)
    assert not again.train.images.flags.writeable
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert first.train.ids == again.train.ids
    assert first.notes == again.notes
    assert load(tree, cache, size=24)[1] == 9


@pytest.mark.parametrize("change", ["pixels, same time and size", "middle of a file", "name"])
def test_changed_content_is_decoded_anew(tree: Path, cache: Path, change: str) -> None:
    """A PNG's checksum at its end tells when the time does not; the time tells when the end does not."""
    image, mask = tree / "train/images/trainA_0.bmp", tree / "train/masks/trainA_0.png"
    image.with_suffix(".png").unlink()
    pixels = np.zeros((100, 100, 3), np.uint8)
    save(image, pixels)
    save(mask, np.zeros((100, 100), np.uint8), compress_level=0)
    before = load(tree, cache)[0]
    if change == "name":
        for path in (image, mask):
            path.rename(path.with_stem("trainA_7"))
    elif change == "middle of a file":
        pixels[40:60] = 200
        save(image, pixels)
    else:
        status = mask.stat()
        save(mask, np.ones((100, 100), np.uint8), compress_level=0)
        os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert mask.stat().st_size == status.st_size
    after, decoded = load(tree, cache)
    assert decoded == 9
    assert (after.train.ids != before.train.ids) == (change == "name")
    assert after.train.images[0].max() > 190 or change != "middle of a file"
    assert (after.train.masks[0] == 1).all() or change != "pixels, same time and size"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["train-images.rows", "test-masks.rows", "test-masks.crc", "index.json"])
@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["one bit", "cut", "emptied", "gone"],
)
def test_damaged_cache_is_made_again(tree: Path, cache: Path, file: str, damage: object) -> None:
    whole, _ = load(tree, cache)
    images, masks = np.array(whole.train.images), np.array(whole.test.masks)
    del whole
    damage(folders(cache)[0] / file)  # type: ignore[operator]
    again, decoded = load(tree, cache)
    if not (file == "index.json" and damage is flip and decoded == 0):  # the bit may hit what is not checked: a space
        assert decoded == 9
    np.testing.assert_array_equal(again.train.images, images)
    np.testing.assert_array_equal(again.test.masks, masks)
    assert len(folders(cache)) == 1
    assert load(tree, cache)[1] == 0


def test_an_interrupted_build_leaves_nothing(tree: Path, cache: Path) -> None:
    (tree / "test/masks/testA_2.png").write_bytes(b"")
    with pytest.raises(UserError):
        load(tree, cache)
    assert folders(cache) == []


def test_drafts_of_killed_processes_are_cleared(tree: Path, cache: Path) -> None:
    load(tree, cache)
    (place,) = folders(cache)
    draft = place.with_name(f"{place.name}.draft")
    place.rename(draft)
    assert load(tree, cache)[1] == 9
    assert folders(cache) == [place]


def build(tree: Path, cache: Path, answer: Path) -> None:
    """In a process of its own."""
    data, decoded = load(tree, cache, size=64)
    answer.write_text(json.dumps([decoded, zlib.crc32(data.train.images), zlib.crc32(data.test.masks)]))


def test_processes_that_build_at_once_agree(tree: Path, cache: Path, tmp_path: Path) -> None:
    answers = [tmp_path / f"{number}.json" for number in range(4)]
    running = [CONTEXT.Process(target=build, args=(tree, cache, answer), daemon=True) for answer in answers]
    for process in running:
        process.start()
    assert [finish(process) for process in running] == [0] * 4
    decoded, *contents = zip(*(json.loads(answer.read_text()) for answer in answers), strict=True)
    assert sorted(decoded) == [0, 0, 0, 9]
    assert all(len(set(content)) == 1 for content in contents)
    assert len(folders(cache)) == 1


def test_default_place(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "elsewhere"))
    load(tree, None)
    assert folders(tmp_path / "elsewhere")
    monkeypatch.delenv("ALGES_FAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(tree, None)
    assert folders(tmp_path / "home/.cache/alges_fast")


def test_cache_that_cannot_be_written(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/cache: cannot keep decoded frames there .* set ALGES_FAST_CACHE"):
        load(tree, tmp_path / "file" / "cache")
