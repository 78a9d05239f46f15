"""The folder loader on real frames, and on trees with every fault a user may have."""

from __future__ import annotations

import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alges_fast.data import Dataset, load_dataset
from alges_fast.data.layouts.folder import video_of
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED

from .trees import SIZE, folder_tree, save


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return folder_tree(tmp_path / "frames")


def load(root: Path, **options: object) -> Dataset:
    return load_dataset("folder", root=root, image_size=16, cache_dir=root.parent / "cache", **options)


@pytest.mark.parametrize(("ignore", "n_classes"), [(11, 11), (None, 12)])
def test_camvid(camvid: Path, tmp_path: Path, ignore: int | None, n_classes: int) -> None:
    data = load_dataset("folder", root=camvid, image_size=48, ignore_index=ignore, cache_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (367, 101, 233)
    assert data.train.images.shape == (367, 3, 48, 48)
    assert len(data.classes) == len(set(data.palette)) == n_classes
    assert set(data.train.videos) == {"0001TP", "0006R0", "0016E5"}
    assert (UNLABELLED in np.unique(data.train.masks)) == (ignore is not None)
    assert any("more than one split" in note and "0001TP" in note for note in data.notes)


def test_frames_are_the_files_stretched(tree: Path) -> None:
    data = load(tree, ignore_index=11)
    position = data.test.index("test/testA_1")
    with Image.open(tree / "test/images/testA_1.png") as picture:
        image = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    with Image.open(tree / "test/masks/testA_1.png") as picture:
        mask = np.array(picture.resize((16, 16), Image.Resampling.NEAREST))
    mask[mask == 11] = UNLABELLED
    np.testing.assert_array_equal(data.test.images[position], image)
    np.testing.assert_array_equal(data.test.masks[position], mask)


def test_frames_come_in_the_order_of_their_numbers(tree: Path) -> None:
    for number in (10, 9):
        save(tree / "train/images" / f"trainA_{number}.png", np.zeros((*SIZE, 3), np.uint8))
        save(tree / "train/masks" / f"trainA_{number}.png", np.zeros(SIZE, np.uint8))
    numbers = [int(name.rpartition("_")[2]) for name in load(tree, ignore_index=11).train.ids]
    assert numbers == [0, 1, 2, 9, 10]


def test_classes_txt_names_the_classes_and_validation_may_be_spelled_out(tree: Path) -> None:
    (tree / "classes.txt").write_text("sky\nliver\nroad\nnever seen\n")
    (tree / "val").rename(tree / "validation")
    data = load(tree, ignore_index=11)
    assert data.classes == ("sky", "liver", "road", "never seen")
    assert data.validation.ids[0] == "validation/valA_0"


@pytest.mark.parametrize(
    ("stem", "video"),
    [("0001TP_006690", "0001TP"), ("op_3_frame_12", "op_3_frame"), ("case12-0042", "case12"), ("000123", "video")],
)
def test_video_of_a_frame(stem: str, video: str) -> None:
    assert video_of(stem) == video


def few_bits(path: Path, bits: int) -> None:
    """Grey of fewer bits than eight, which must not be stretched."""
    row = b"\0" + bytes([0b10101010 if bits == 2 else 0b00100010]) * (SIZE[1] * bits // 8)
    path.write_bytes(png(SIZE[1], SIZE[0], bits, GREY, row * SIZE[0]))


def palette_mask(path: Path) -> None:
    mask = Image.fromarray(np.full(SIZE, 2, np.uint8), mode=None).convert("P")
    mask.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9])
    mask.putdata([2] * (SIZE[0] * SIZE[1]))
    mask.save(path)


ENCODINGS: dict[str, Callable[[Path], object]] = {
    "16 bits": lambda path: save(path, np.full(SIZE, 2, np.uint16)),
    "three equal channels": lambda path: save(path, np.full((*SIZE, 3), 2, np.uint8)),
    "RGBA": lambda path: save(path, np.dstack([*[np.full(SIZE, 2, np.uint8)] * 3, np.full(SIZE, 128, np.uint8)])),
    "palette": palette_mask,
    "2 bits": lambda path: few_bits(path, 2),
    "4 bits": lambda path: few_bits(path, 4),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_of_class_ids(tree: Path, encoding: str) -> None:
    ENCODINGS[encoding](tree / "train/masks/trainA_0.png")
    assert np.all(load(tree, ignore_index=11).train.masks[0] == 2)


GREY, COLOUR = 0, 2


def png(width: int, height: int, bits: int, colour: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def hollow_png(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds next to none."""
    return png(width, height, 8, COLOUR, bytes(1000))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


IMAGE, MASK = "train/images/trainA_1.png", "train/masks/trainA_1.png"

FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "mask missing": (IMAGE, lambda root: (root / MASK).unlink(), "image without a mask"),
    "image missing": (MASK, lambda root: (root / IMAGE).unlink(), "mask without an image"),
    "sizes differ": (MASK, lambda root: save(root / MASK, np.zeros((24, 31), np.uint8)), "31 x 24, its image 32 x 24"),
    "id beyond 16 bits": (MASK, lambda root: save(root / MASK, np.full(SIZE, 300, np.uint16)), "class id 300"),
    "colour mask": (MASK, lambda root: save(root / MASK, np.full((*SIZE, 3), (1, 2, 3), np.uint8)), "a colour mask"),
    "JPEG mask": (MASK, lambda root: save(root / MASK, np.zeros(SIZE, np.uint8), format="JPEG"), "JPEG"),
    "truncated image": (IMAGE, lambda root: cut(root / IMAGE), "damaged or cut short"),
    "truncated mask": (MASK, lambda root: cut(root / MASK), "damaged or cut short"),
    "zero bytes": (IMAGE, lambda root: (root / IMAGE).write_bytes(b""), "empty"),
    "text, not pixels": (MASK, lambda root: (root / MASK).write_text("class ids"), "not a picture"),
    "large picture": (IMAGE, lambda root: (root / IMAGE).write_bytes(hollow_png(9000, 9000)), "over the limit"),
    "bomb": (IMAGE, lambda root: (root / IMAGE).write_bytes(hollow_png(60000, 60000)), "over the limit"),
    "16-bit image": (IMAGE, lambda root: save(root / IMAGE, np.full(SIZE, 300, np.uint16)), "more than 8 bits"),
    "symlink loop": (IMAGE, lambda root: loop(root / IMAGE), "symbolic links"),
    "link to nothing": (MASK, lambda root: ((root / MASK).unlink(), (root / MASK).symlink_to("gone")), "No such file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(tree: Path, fault: str) -> None:
    """The first fault stops with one line that names the file; skip leaves out its frame and says so."""
    file, spoil, says = FAULTS[fault]
    spoil(tree)
    with pytest.raises(UserError) as stopped:
        load(tree, ignore_index=11)
    line = str(stopped.value)
    assert "\n" not in line
    assert str(tree / file) in line
    assert says in line
    for _ in range(2):  # decoded, then from the cache
        data = load(tree, ignore_index=11, on_bad_image="skip")
        assert data.train.ids == ("train/trainA_0", "train/trainA_2")
        assert len(data.validation) == len(data.test) == 3
        assert any(note.startswith(f"left out: {tree / file}") and says in note for note in data.notes)
    with pytest.raises(UserError, match=re.escape(says)):  # what skip left in the cache hides nothing from stop
        load(tree, ignore_index=11)


STRANGERS: dict[str, Callable[[Path], object]] = {
    "wrong extension": lambda folder: (folder / "notes.txt").write_text("hello"),
    "folder": lambda folder: (folder / "more.d").mkdir(),
    "folder linked into itself": lambda folder: (folder / "loop").symlink_to(folder),
    "same stem twice": lambda folder: save(folder / "trainA_1.bmp", np.zeros((*SIZE, 3), np.uint8)),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_stranger_in_the_folder(tree: Path, stranger: str) -> None:
    """What cannot be a frame is named; skip keeps all the frames."""
    STRANGERS[stranger](tree / "train/images")
    (tree / "train/images/.DS_Store").write_bytes(b"hidden files are nobody's fault")
    (tree / "train/images/desktop.ini").touch()
    with pytest.raises(UserError, match=r"train/images/(notes\.txt|more\.d|loop|trainA_1\.(bmp|png)): "):
        load(tree, ignore_index=11)
    data = load(tree, ignore_index=11, on_bad_image="skip")
    assert len(data.train) == 3
    assert len([note for note in data.notes if note.startswith("left out")]) == 1


def full_of(mask: str, value: int) -> Callable[[Path], None]:
    return lambda root: save(root / mask, np.full(SIZE, value, np.uint8))


def classes(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "classes.txt").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: shutil.rmtree(root / "train"), "no folder train"),
        (lambda root: shutil.rmtree(root / "val"), "no folder val or validation"),
        (lambda root: shutil.rmtree(root / "test/masks"), "test/masks: no such folder"),
        (lambda root: [path.unlink() for path in root.glob("val/*/*")], "no usable frame in the validation split"),
        (
            full_of("train/masks/trainA_0.png", 200),
            "trainA_0.png: 4 distinct values up to 200 do not look like class ids",
        ),
        (classes("sky\nliver\n"), "class id 2 is out of range (2 classes are named)"),
        (
            full_of("test/masks/testA_2.png", 7),
            "testA_2.png: class id 7 is out of range (the training masks go up to 2)",
        ),
        (classes("liver\nliver\n"), "expected 2 to 255 different class names"),
        (classes("sky\nimage\nroad\n"), "give class 'image' another name"),
    ],
)
def test_tree_that_makes_no_sense(tree: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(tree)
    with pytest.raises(UserError, match=re.escape(says)):
        load(tree, ignore_index=11)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name": "folder", "root": "no-such-folder"}, "no-such-folder: no such folder"),
        ({"name": "folder"}, "needs a data root"),
        ({"name": "cholec"}, "dataset 'cholec' is unknown: use one of synthetic, "),
        ({"name": "synthetic", "root": "."}, "leave out a data root"),
        ({"name": "synthetic", "split": "mine"}, "split 'mine' is unknown: use one of alges, endovit"),
        ({"name": "folder", "root": ".", "split": "alges"}, "split 'alges' does not apply to folder"),
        ({"name": "m2caiseg", "root": ".", "ignore_index": 3}, "ignore_index does not apply to m2caiseg"),
        ({"name": "folder", "root": ".", "on_bad_image": "hide"}, "use stop or skip"),
        ({"name": "synthetic", "image_size": 3}, "image_size 3 is too small"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        load_dataset(**options, cache_dir=tmp_path)


def test_pictures_are_read_from_the_files_at_the_size_asked(tree: Path) -> None:
    """A frozen encoder sees more of a frame than the kept, small image has."""
    detail = np.indices((64, 64)).sum(0) % 2 * 255
    path = next((tree / "train" / "images").iterdir())
    save(path.with_suffix(".png"), np.stack([detail] * 3, 2).astype(np.uint8))
    mask = next((tree / "train" / "masks").glob(f"{path.stem}.*"))
    save(mask, (np.indices((64, 64))[0] // 6).astype(np.uint8))
    if path.suffix != ".png":
        path.unlink()
    train = load(tree).train
    at = train.index(f"train/{path.stem}")
    (picture,) = train.pictures([at], 64)
    np.testing.assert_array_equal(picture[0], detail)
    np.testing.assert_array_equal(train.pictures([at], 16)[0], train.images[at])
    (other,) = train.subset([at]).pictures([0], 64)
    np.testing.assert_array_equal(other, picture)
