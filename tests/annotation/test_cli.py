"""`python -m alges_fast.select`: the same picks whenever it is stopped, files that tools read, mistakes in one line."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import alges_fast
from alges_fast import atomic
from alges_fast.annotation.cli import main

ROOT = Path(__file__).resolve().parents[2]
MODEL = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, 3, 1))
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two videos of twenty numbered pictures, 48 x 32, and a model beside them; the working directory is the test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_model", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tiny_model.py").write_text(MODEL)
    generator = np.random.default_rng(0)
    for video in ("a", "b"):
        for number in range(20):
            path = tmp_path / "pool" / video / f"frame_{number * 30:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 30 + 11 * number, (32, 48, 3)).astype(np.uint8)).save(path)
    return tmp_path


def command(*more: str, out: str = "out", n: int = 6) -> list[str]:
    fixed = ["--model", "tiny_model:make", "--images", "pool", "--n", str(n), "--out", out, "--image_size", "32"]
    return [*fixed, "--classes", "wall,vessel,tool", "--device", "cpu", *more]


def picks(out: Path) -> list[dict[str, str]]:
    with (out / "picks.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files(out: Path) -> dict[str, bytes]:
    """What a person or a tool reads."""
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: contents for name, contents in found.items() if not name.startswith("scores/")}


def test_one_command_leaves_picks_with_reasons_and_pictures(pool: Path) -> None:
    assert main(command()) == 0
    rows = picks(pool / "out")
    assert [row["rank"] for row in rows] == [str(i + 1) for i in range(6)]
    assert {row["video"] for row in rows} == {"a/frame", "b/frame"}
    for at, row in enumerate(rows):
        assert row["class"] in ("wall", "vessel", "tool")
        assert float(row["score"]) > 0
        assert row["nearest"] in [earlier["id"] for earlier in rows[:at]] or at == 0
        original = (pool / "pool" / row["id"]).read_bytes()
        assert (pool / "out" / "images" / row["id"]).read_bytes() == original
        mask = np.asarray(Image.open(pool / "out" / "masks" / f"{row['id']}.png"))
        assert mask.shape == (32, 48)
        assert mask.max() < 3
        assert Image.open(pool / "out" / "norm_maps" / f"{row['id']}.jpg").size == (48, 32)
    assert Image.open(pool / "out" / "contact_sheet.png").size[0] > 1000


def test_default_gap_keeps_consecutive_frames_apart_and_zero_does_not(pool: Path) -> None:
    assert main(command(n=10)) == 0
    numbers = sorted(int(row["id"][-8:-4]) + 10_000 * (row["id"][0] == "b") for row in picks(pool / "out"))
    assert min(np.diff(numbers)) >= 60
    assert main(command("--min_gap", "0", out="free", n=40)) == 0
    assert len(picks(pool / "free")) == 40


def test_import_files_load_in_the_tools_own_libraries(pool: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="datumaro, CVAT's import library, is not installed")
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    assert main(command()) == 0
    expected = {
        row["id"]: np.asarray(Image.open(pool / "out" / "masks" / f"{row['id']}.png")) for row in picks(pool / "out")
    }
    with zipfile.ZipFile(pool / "out" / "cvat.zip") as archive:
        archive.extractall(pool / "cvat")
    read = datumaro.Dataset.import_from(str(pool / "cvat"), "cvat")
    assert len(read) == 6
    for item in read:
        found = np.full((32, 48), 255, np.uint8)
        for annotation in item.annotations:
            found[np.asarray(annotation.image, bool)] = annotation.label
        np.testing.assert_array_equal(found, expected[f"{item.id}.png"])
        assert item.media.data.shape == (32, 48, 3)
    tasks = json.loads((pool / "out" / "label_studio" / "tasks.json").read_text())
    for task in tasks:
        mask = expected[task["data"]["image"].removeprefix("/data/local-files/?d=images/")]
        for result in task["predictions"][0]["result"]:
            alpha = brush.decode_rle(result["value"]["rle"]).reshape(32, 48, 4)[..., 3]
            label = ("wall", "vessel", "tool").index(result["value"]["brushlabels"][0])
            np.testing.assert_array_equal(alpha > 0, mask == label)


def test_page_asks_nothing_of_the_network_and_shows_every_pick(pool: Path) -> None:
    assert main(command()) == 0
    page = (pool / "out" / "index.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|@import|url\(""", page)
    assert page.count("data:image/webp") == 3 * 6
    for row in picks(pool / "out"):
        assert f'data-id="{row["id"]}"' in page


def test_labelled_frames_count_by_id_path_and_from_elsewhere(pool: Path) -> None:
    elsewhere = pool / "old" / "one.png"
    elsewhere.parent.mkdir()
    Image.new("RGB", (48, 32), (90, 20, 20)).save(elsewhere)
    lines = ["a/frame_0000.png", "pool/b/frame_0000.png", str(elsewhere)]
    (pool / "labelled.txt").write_text("\n".join(lines))
    assert main(command("--labelled", "labelled.txt", "--min_gap", "0", n=38)) == 0
    ids = {row["id"] for row in picks(pool / "out")}
    assert len(ids) == 38
    assert not ids & {"a/frame_0000.png", "b/frame_0000.png", str(elsewhere)}


def test_refused_picks_are_replaced_with_their_files_and_a_longer_list_goes_on(pool: Path) -> None:
    assert main(command()) == 0
    first = [row["id"] for row in picks(pool / "out")]
    corrected = pool / "out" / "masks" / f"{first[1]}.png"
    corrected.write_bytes(b"corrected by hand")
    (pool / "refused.txt").write_text(first[0] + "\n")
    assert main(command("--reject", "refused.txt")) == 0
    second = [row["id"] for row in picks(pool / "out")]
    assert second[:5] == first[1:]
    assert corrected.read_bytes() == b"corrected by hand"
    assert not (pool / "out" / "images" / first[0]).exists()
    (pool / "refused.txt").write_text(f"{first[0]}\n{first[2]}\n")
    assert main(command("--reject", "refused.txt")) == 0
    third = [row["id"] for row in picks(pool / "out")]
    assert third[:5] == [name for name in second if name != first[2]]


def test_stopped_at_any_write_it_continues_to_the_same_files(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(command(out="whole")) == 0
    expected = files(pool / "whole")
    write = atomic.write_bytes
    for stop_at in range(0, 25, 4):
        written = 0

        def stopping(path: Path, contents: bytes, stop_at: int = stop_at) -> None:
            nonlocal written
            if written == stop_at:
                raise KeyboardInterrupt
            written += 1
            write(path, contents)

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write_bytes", stopping)
            assert main(command(out=f"cut{stop_at}")) in (0, 130)
        assert main(command(out=f"cut{stop_at}")) == 0
        found = files(pool / f"cut{stop_at}")
        found["config.yaml"] = found["config.yaml"].replace(f"cut{stop_at}".encode(), b"whole")
        assert found == expected


@pytest.mark.slow
def test_killed_at_random_instants_it_makes_the_same_picks(pool: Path) -> None:
    run = [sys.executable, "-m", "alges_fast.select", *command(out="killed"), "--batch_size", "1"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{pool}"}
    start = time.monotonic()
    reference = [*run[:3], *command(out="whole"), "--batch_size", "1"]
    subprocess.run(reference, env=environment, check=True, capture_output=True)
    whole = time.monotonic() - start
    generator = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(run, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * generator.uniform(0.5, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(run, env=environment, check=True, capture_output=True)
    assert picks(pool / "killed") == picks(pool / "whole")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--strategy", "deal"], "--strategy deal needs a model trained for it: use random"),
        (["--strategy", "nonsense"], "is unknown here"),
        (["--images", "nowhere"], "nowhere: no such file or folder"),
        (["--model", "nowhere.pt2"], "nowhere.pt2: no such file"),
        (["--model", "tiny_model:absent"], "cannot be imported"),
        (["--n", "41"], "the pool has 40 frames"),
        (["--classes", "a,b"], "the model has 3 classes"),
        (["--class_weights", "1,2"], "class_weights: expected 3"),
        (["--class_weights", '{"nose": 2}'], "no class 'nose'"),
        (["--class_weights", "much"], "give numbers like"),
        (["--labelled", "absent.txt"], "--labelled absent.txt: cannot be read"),
        (["--reject", "tiny_model.py"], "is no id of the pool"),
        (["--nonsense", "1"], "nonsense"),
        (["--n", "many"], "many"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    pool: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_another_configuration_or_a_folder_of_others_is_refused(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command()) == 0
    assert main(command("--seed", "1")) == 2
    assert "seed was 0 and is now 1" in capsys.readouterr().err
    Image.new("RGB", (48, 32)).save(pool / "pool" / "a" / "frame_9999.png")
    assert main(command()) == 2
    assert "pool was 40 frames" in capsys.readouterr().err
    assert main(command(out="pool")) == 2
    assert "holds other files" in capsys.readouterr().err


def test_classes_are_aimed_at_by_name(pool: Path) -> None:
    assert main(command("--class_weights", '{"wall": 0, "tool": 0}')) == 0
    assert {row["class"] for row in picks(pool / "out")} == {"vessel"}


def test_select_is_the_function_and_the_module_is_only_a_command() -> None:
    with pytest.raises(ImportError, match=r"python -m alges_fast\.select"):
        __import__("alges_fast.select")
    assert callable(alges_fast.select)
    said = subprocess.run(
        [sys.executable, "-m", "alges_fast.select", "--strategy", "deal", "--model", "m:f", "--images", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2
    assert said.stderr.startswith("error: --strategy deal")
