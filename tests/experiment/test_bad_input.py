"""Every mistake and every bad file through the whole command: exit code 2 and one line that names the thing.

tests/data tries the same faults on the loaders, and says what each line holds beside the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import SMALL, one_line
from data.test_folder import FAULTS
from data.trees import SIZE, folder_tree, save

import alges_fast
from alges_fast.run import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder_tree(tmp_path / "frames", 4)


@pytest.fixture
def run(root: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    argv = [*SMALL, "--data_root", str(root), "--strategies", "random", "--rounds", "1", "--out", str(tmp_path / "out")]
    return lambda *flags: main([*argv, *flags])


@pytest.mark.parametrize(
    "fault", ["mask missing", "truncated image", "bomb", "large picture", "id beyond 16 bits", "symlink loop"]
)
def test_a_bad_file_is_named_or_skipped_and_listed(
    fault: str,
    root: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    name, spoil, _ = FAULTS[fault]
    spoil(root)
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


def leave_one(root: Path) -> None:
    for path in root.glob("train/*/*.png"):
        if not path.name.endswith("_0.png"):
            path.unlink()


def nothing(root: Path) -> None:
    pass


def loop_for_root(root: Path) -> None:
    root.rename(root.with_name("away"))
    root.symlink_to(root.name)


UNET = ["--architecture", "unet", "--encoder", "resnet18"]  # one pixel at its deepest: no statistics from one image


def no_test_frame(root: Path) -> None:
    for path in root.glob("test/*/*.png"):
        path.unlink()


def out_of_range(root: Path) -> None:
    save(root / "test/masks/testA_1.png", np.full(SIZE, 7, np.uint8))


CONFIG = ["--config", "settings.yaml"]


def settings(text: str) -> Callable[[Path], object]:
    return lambda root: Path("settings.yaml").write_text(text)


MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "empty split": (no_test_frame, [], "no usable frame in the test split"),
    "one image in the pool": (leave_one, [], "the pool has 1: lower"),
    "one image to train on": (leave_one, ["--init_size", "1", *UNET], "cannot train on one image: raise --init_size"),
    "query larger than the pool": (nothing, ["--rounds", "2", "--query_size", "50"], "need 52, but the pool has 4"),
    "initial pool larger than the pool": (nothing, ["--init_size", "50"], "need 50, but the pool has 4"),
    "missing root": (nothing, ["--data_root", "/no/such"], "/no/such: no such folder"),
    "no root": (nothing, ["--data_root", "null"], "give --data_root DIR"),
    "root linked to itself": (loop_for_root, [], "frames: no such folder"),
    "root is a file": (nothing, ["--data_root", __file__], "test_bad_input.py: no such folder"),
    "unknown data set": (nothing, ["--dataset", "cholec"], "dataset 'cholec' is unknown: use one of synthetic"),
    "unknown strategy": (nothing, ["--strategies", "alges-im"], "strategy 'alges-im' is unknown (nearest: alges-img"),
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
    "no round": (nothing, ["--rounds", "0"], "--rounds is 0: give at least 1"),
    "rounds of letters": (nothing, ["--rounds", "many"], "--rounds many: give a whole number"),
    "range of seeds": (nothing, ["--seeds", "1-5"], "--seeds 1-5: give whole numbers with commas between"),
    "seed twice": (nothing, ["--seeds", "0,0"], "names one twice"),
    "precision": (nothing, ["--precision", "fp16"], "--precision fp16: give one of 32-true, bf16-mixed, 16-mixed"),
    "no such home": (nothing, ["--data_root=~nobody-has-this-name/x"], "~nobody-has-this-name/x: no such home folder"),
    "unknown flag": (nothing, ["--bogus", "1"], "--bogus"),
    "flag of a like name": (nothing, ["--seed", "3"], "--seed 3 (nearest: --seeds)"),
    "half a flag": (nothing, ["--pres", "paper"], "(nearest: --preset)"),
    "unknown preset": (nothing, ["--preset", "papper"], "--preset papper is unknown: use none, demo, camvid, paper"),
    "infinite rate": (nothing, ["--lr", "inf"], "--lr is inf"),
    "no such file": (nothing, ["--config", "/no/such.yaml"], "/no/such.yaml: No such file"),
    "a size for other models": (nothing, ["--architecture", "unetplusplus", "--image_size", "50"], "does not suit"),
    "unknown encoder": (nothing, ["--encoder", "resnet19"], "nearest: resnet18"),
    "a folder that cannot be": (nothing, ["--out", "/proc/nowhere"], "/proc/nowhere"),
    "a list for settings": (settings("- 1"), CONFIG, "holds no settings: give lines like 'epochs: 8'"),
    "unknown setting": (settings("epoch: 3"), CONFIG, "epoch is no setting (nearest: epochs)"),
    "seeds of letters": (settings("seeds: one,two"), CONFIG, "--seeds one: give whole numbers"),
    "a mapping for a number": (settings("epochs: {a: 1}"), CONFIG, '--epochs {"a": 1}: give a whole number'),
    "no YAML": (settings("a: b: c"), CONFIG, "is not a YAML file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str,
    root: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil, flags, says = MISTAKES[mistake]
    monkeypatch.chdir(root.parent)
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
