"""Every mistake and every bad file through the whole command: exit code 2 and one line that names the thing.

tests/data tries the same faults on the loaders, and says what each line holds beside the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL
from data.test_folder import hollow_png
from data.trees import SIZE, folder_tree, save

import alges_fast
from alges_fast.experiment import loop
from alges_fast.run import main

IMAGE, MASK = "train/images/trainA_1.png", "train/masks/trainA_1.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder_tree(tmp_path / "frames", 4)


@pytest.fixture
def run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loop, "write_report", lambda out: None)
    argv = [*SMALL, "--data_root", str(root), "--strategies", "random", "--rounds", "1", "--out", str(tmp_path / "out")]
    return lambda *flags: main([*argv, *flags])


def link_to_itself(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def palette_beyond_the_classes(path: Path) -> None:
    from PIL import Image

    (path.parents[2] / "classes.txt").write_text("sky\nliver\nroad\n")
    mask = Image.fromarray(np.full(SIZE, 9, np.uint8)).convert("P")
    mask.putdata([9] * (SIZE[0] * SIZE[1]))
    mask.save(path)


BAD_FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated PNG": (IMAGE, lambda path: path.write_bytes(path.read_bytes()[:-200])),
    "truncated mask": (MASK, lambda path: path.write_bytes(path.read_bytes()[:60])),
    "zero bytes": (IMAGE, lambda path: path.write_bytes(b"")),
    "text by the name of an image": (IMAGE, lambda path: path.write_text("hello")),
    "wrong extension": ("train/images/notes.txt", lambda path: path.write_text("hello")),
    "decompression bomb": (IMAGE, lambda path: path.write_bytes(hollow_png(60000, 60000))),
    "bomb that Pillow only warns of": (IMAGE, lambda path: path.write_bytes(hollow_png(10000, 10000))),
    "16-bit image": (IMAGE, lambda path: save(path, np.full(SIZE, 300, np.uint16))),
    "16-bit mask beyond 8 bits": (MASK, lambda path: save(path, np.full(SIZE, 300, np.uint16))),
    "palette mask out of range": (MASK, palette_beyond_the_classes),
    "colour mask": (MASK, lambda path: save(path, np.full((*SIZE, 3), (1, 2, 3), np.uint8))),
    "symlink loop for a file": (IMAGE, link_to_itself),
    "folder linked into itself": ("train/images/loop", lambda path: path.symlink_to(path.parent)),
    "mask without an image": ("train/masks/more_1.png", lambda path: save(path, np.zeros(SIZE, np.uint8))),
    "image without a mask": ("train/images/more_1.png", lambda path: save(path, np.zeros((*SIZE, 3), np.uint8))),
    "mask of another size": (MASK, lambda path: save(path, np.zeros((24, 31), np.uint8))),
}


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    print(error)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    return error


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_named_or_skipped_and_listed(
    fault: str,
    root: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    name, spoil = BAD_FILES[fault]
    spoil(root / name)
    before = _state(root)
    assert run() == 2
    assert str(root / name) in one_line(capsys)
    assert run("--on_bad_image", "skip") == 0
    told = capsys.readouterr()
    assert f"left out: {root / name}" in told.out
    assert told.err == ""
    assert not [warning for warning in recwarn if "bomb" in str(warning.message)]  # pytest keeps these off stderr
    assert _state(root) == before, "the command wrote under the data root"


def test_masks_of_16_bits_and_of_palettes_are_class_ids(root: Path, run: Callable[..., int]) -> None:
    from PIL import Image

    for number in (1, 2):
        path = root / f"train/masks/trainA_{number}.png"
        ids = np.asarray(Image.open(path))
        save(path, ids.astype(np.uint16)) if number == 1 else Image.fromarray(ids).convert("P").save(path)
    assert run() == 0


def empty(folder: str) -> Callable[[Path], None]:
    return lambda root: [path.unlink() for path in root.glob(f"{folder}/*/*.png")] and None


def leave_one(root: Path) -> None:
    for path in root.glob("train/*/*.png"):
        if not path.name.endswith("_0.png"):
            path.unlink()


def nothing(root: Path) -> None:
    pass


def out_of_range(root: Path) -> None:
    save(root / "test/masks/testA_1.png", np.full(SIZE, 7, np.uint8))


def loop_for_root(root: Path) -> None:
    root.rename(root.with_name("away"))
    root.symlink_to(root.name)


UNET = [
    "--architecture",
    "unet",
    "--encoder",
    "resnet18",
]  # one pixel at its deepest: no batch statistics from one image

MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "empty split": (empty("test"), [], "no usable frame in the test split"),
    "one image in the pool": (leave_one, [], "the pool has 1: lower"),
    "one image to train on": (
        leave_one,
        ["--init_size", "1", *UNET],
        "round 1 of 1: this model's batch normalisation cannot train on one image: raise --init_size",
    ),
    "query larger than the pool": (nothing, ["--rounds", "2", "--query_size", "50"], "need 52, but the pool has 4"),
    "initial pool larger than the pool": (nothing, ["--init_size", "50"], "need 50, but the pool has 4"),
    "missing root": (nothing, ["--data_root", "/no/such"], "/no/such: no such folder"),
    "no root": (nothing, ["--data_root", "null"], "give --data_root DIR"),
    "root linked to itself": (loop_for_root, [], "frames: no such folder"),
    "root is a file": (nothing, ["--data_root", __file__], "test_bad_input.py: no such folder"),
    "unknown data set": (nothing, ["--dataset", "cholec"], "dataset 'cholec' is unknown: use one of synthetic"),
    "unknown strategy": (nothing, ["--strategies", "alges-im"], "'alges-im' is unknown; nearest: alges-img"),
    "strategy file that is not there": (nothing, ["--strategies", "no.py:Mine"], "no file no.py"),
    "strategy module that is not there": (nothing, ["--strategies", "no.such:Mine"], "no.such does not import"),
    "class id out of range": (out_of_range, [], "testA_1.png: class id 7 is out of range"),
    "unknown encoder weights": (nothing, ["--encoder_weights", "imagnet"], "imagnet"),
    "encoder weights in a pickle": (nothing, ["--encoder_weights", "weights.pth"], "weights.pth"),
    "image size of a fraction": (nothing, ["--image_size", "3.5"], "image_size"),
    "negative seed": (nothing, ["--seeds", "-1"], "--seeds has -1"),
    "learning rate of nan": (nothing, ["--lr", "nan"], "--lr is nan"),
    "learning rate that diverges": (nothing, ["--lr", "1e30", "--epochs", "3"], "lower --lr"),
    "even head": (nothing, ["--head_kernel", "2"], "head_kernel"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, root: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, flags, says = MISTAKES[mistake]
    spoil(root)
    assert run(*flags) == 2
    assert says in one_line(capsys)


def test_one_image_in_the_pool_is_enough_for_one_training(root: Path, run: Callable[..., int]) -> None:
    leave_one(root)
    assert run("--init_size", "1", "--image_size", "64") == 0


def test_nothing_is_read_by_pickle() -> None:
    """Weights are safetensors, or a state dict that torch reads without running what is in it; arrays are read with
    numpy's default (no pickle), the rest is JSON and safe YAML."""
    reads = re.compile(
        r"torch\.load\(|pickle[.](load|Unpickler)|from pickle|allow_pickle|yaml\.(unsafe_|full_)?load\(|\bjoblib\b"
        r"|\b(eval|exec)\("
    )
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in Path(alges_fast.__file__).parent.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if reads.search(line) and not re.search(r"(?:\.|def )eval\(|weights_only=True", line)
    ]
    assert found == []


def _state(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [root, *root.rglob("*")]}
