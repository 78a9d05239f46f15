"""`python -m alges_fast.select`: the same picks whenever it is stopped, files that tools read, mistakes in one line."""

from __future__ import annotations

import html
import importlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import alges_fast
from alges_fast import atomic
from alges_fast.errors import UserError
from alges_fast.project import network, scoring
from alges_fast.project.folder import LOCK
from alges_fast.project.selecting import main, parse
from tests.commands import TINY_MODEL
from tests.data.trees import save
from tests.project.annotators import contents, rows_of, run

ROOT = Path(__file__).resolve().parents[2]
ROUND = "out/rounds/000"


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two videos of twenty numbered pictures, 48 x 32, and a model beside them; the working directory is the test's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_model", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny_model.py").write_text(TINY_MODEL)
    generator = np.random.default_rng(0)
    for video in ("a", "b"):
        for number in range(20):
            path = tmp_path / "pool" / video / f"frame_{number * 30:04d}.png"
            save(path, generator.integers(0, 30 + 11 * number, (32, 48, 3)).astype(np.uint8))
    return tmp_path


def command(*more: str, out: str = "out", n: int = 6) -> list[str]:
    fixed = ["--model", "tiny_model:make", "--images", "pool", "--n", str(n), "--out", out, "--image_size", "32"]
    return [*fixed, "--classes", "wall,vessel,tool", "--device", "cpu", "--desk", "frames", *more]


def picks(out: Path) -> list[dict[str, str]]:
    return rows_of(out / "rounds/000/picks.csv")


def files(out: Path) -> dict[str, bytes]:
    """What a person or a tool reads."""
    return {name: file for name, file in contents(out).items() if not name.startswith("scores/")}


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
        assert (pool / ROUND / "images" / row["id"]).read_bytes() == original
        mask = np.asarray(Image.open(pool / ROUND / "masks" / f"{row['id']}.png"))
        assert mask.shape == (32, 48)
        assert mask.max() < 3
        assert Image.open(pool / ROUND / "norm_maps" / f"{row['id']}.jpg").size == (48, 32)
    assert Image.open(pool / ROUND / "contact_sheet.png").size[0] > 1000


def test_a_picture_smaller_than_the_grid_is_left_out(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (2, 3)).save(pool / "pool" / "a" / "icon_1.png")
    (pool / "pool" / "a" / "empty_1.png").touch()
    random = ("--regions", "8x8", "--strategy", "random")
    assert main(command(*random, n=40)) == 0
    assert len(picks(pool / "out")) == 40 * 64
    assert "icon_1.png: 8 rows x 8 columns of windows do not fit 3 x 2 pixels" in (
        pool / ROUND / "left_out.csv"
    ).read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(command("--regions", "100x100", out="none")) == 2
    assert "100 rows x 100 columns of windows do not fit 32 x 48 pixels" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grid", [(), ("--regions", "2x2", "--strategy", "alges-effort")], ids=["frames", "windows"])
def test_an_exported_model_picks_as_its_function_does(pool: Path, grid: tuple[str, ...]) -> None:
    model = importlib.import_module("tiny_model").make().eval()
    images = (torch.zeros(2, 3, 32, 32),)
    torch.export.save(
        torch.export.export(model, images, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), pool / "model.pt2"
    )
    torch.jit.script(model).save(str(pool / "model.ts"))
    assert main(command(*grid)) == 0
    for name in ("model.pt2", "model.ts"):
        assert main(command(*grid, "--model", name, out=name[-3:])) == 0
        assert [row["id"] for row in picks(pool / name[-3:])] == [row["id"] for row in picks(pool / "out")]


def test_default_gap_keeps_consecutive_frames_apart_and_zero_does_not(pool: Path) -> None:
    assert main(command(n=10)) == 0
    numbers = sorted(int(row["id"][-8:-4]) + 10_000 * (row["id"][0] == "b") for row in picks(pool / "out"))
    assert min(np.diff(numbers)) >= 60
    assert main(command("--min_gap", "0", out="free", n=40)) == 0
    assert len(picks(pool / "free")) == 40


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
    corrected = pool / ROUND / "masks" / f"{first[1]}.png"
    corrected.write_bytes(b"corrected by hand")
    (pool / "refused.txt").write_text(first[0] + "\n")
    assert main(command("--reject", "refused.txt")) == 0
    second = [row["id"] for row in picks(pool / "out")]
    assert second[:5] == first[1:]
    assert corrected.read_bytes() == b"corrected by hand"
    assert not (pool / ROUND / "images" / first[0]).exists()
    (pool / "refused.txt").write_text(f"{first[0]}\n{first[2]}\n")
    assert main(command("--reject", "refused.txt")) == 0
    third = [row["id"] for row in picks(pool / "out")]
    assert third[:5] == [name for name in second if name != first[2]]


@pytest.mark.parametrize("more", [[], ["--n", "2", "--regions", "4x3"]], ids=["frames", "windows"])
def test_stopped_at_any_write_it_continues_to_the_same_files(
    pool: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    """Also where a pick was refused in between."""
    more, refused = [*more, "--reject", "refused.txt"], pool / "refused.txt"
    refused.write_text("")
    assert main(command(*more, out="whole")) == 0
    refused.write_text(picks(pool / "whole")[0]["id"] + "\n")
    assert main(command(*more, out="whole")) == 0
    replace = Path.replace
    for stop_at in (0, 2, 5, 9, 14, 20):
        named, out = [], f"cut{stop_at}"

        def stopping(draft: Path, path: Path, named: list[Path] = named, stop_at: int = stop_at) -> Path:
            if len(named) == stop_at:
                raise KeyboardInterrupt
            named.append(path)
            return replace(draft, path)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stopping)
            assert main(command(*more, out=out)) in (0, 130)
        assert main(command(*more, out=out)) == 0
        assert files(pool / out) == files(pool / "whole")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--strategy", "deal"], "'deal' needs a model that was trained for it"),
        (["--strategy", "deal", "--model", "x.pt2"], "--strategy deal needs a model that was trained for it: give it"),
        (["--strategy", "random", "--class_weights", "1,2,3"], "random has no rows per class to weigh"),
        (["--strategy", "nonsense"], "strategy 'nonsense' is unknown"),
        (["--strategy", "nowhere.py:Mine"], "strategy 'nowhere.py:Mine': no file nowhere.py"),
        (["--strategy", "full"], "takes the whole pool, so there is nothing to choose"),
        (["--images", "nowhere"], "nowhere: no such file or folder"),
        (["--model", "nowhere.pt2"], "nowhere.pt2: no such file"),
        (["--model", "tiny_model:absent"], "cannot be imported"),
        (["--n", "41"], "the pool has 40 frames left"),
        (["--classes", "a,b"], "the model has 3 classes"),
        (["--class_weights", "1,2"], "class_weights: expected 3"),
        (["--class_weights", '{"nose": 2}'], "no class 'nose'"),
        (["--class_weights", "much"], "give numbers like"),
        (["--labelled", "absent.txt"], "--labelled absent.txt: cannot be read"),
        (["--reject", "tiny_model.py"], "is no id of the pool"),
        (["--regions", "8"], "--regions 8: give rows x columns, such as 8x8"),
        (["--regions", "33x4"], "33 rows x 4 columns of windows do not fit 32 x 48 pixels"),
        (["--regions", "4x4", "--budget_pixels", "9"], "--budget_pixels: the budget must be between 96 and 61440"),
        (["--budget_pixels", "900"], "--budget_pixels counts pixels of windows: give --regions too"),
        (["--regions", "4x4", "--classes", "annotate,b,c"], "rename the class"),
        (["--classes", ",".join(f"a class of a long name {k}" for k in range(20))], "the model has 3 classes"),
        (["--min_gap", "inf"], "--min_gap is inf: give a finite number"),
        (["--fps", "inf"], "--fps is inf: give a finite number"),
        (["--nonsense", "1"], "nonsense"),
        (["--n", "many"], "--n many: give a whole number"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    pool: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_budget_of_outline_is_said(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("--budget", "outline", "--strategy", "random", n=3)) == 0
    expected = sum(float(row["outline"]) for row in picks(pool / "out"))
    assert f"with {expected:,.0f} pixels of predicted outline" in capsys.readouterr().out
    assert f"expects {expected:,.0f} pixels of outline to be drawn" in (pool / ROUND / "index.html").read_text()


def test_a_folder_in_use_is_refused_and_one_that_was_just_made_is_not(
    pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with atomic.locked(pool / "out" / LOCK):
        assert main(command()) == 2
        assert "out: another process works there" in capsys.readouterr().err
    (pool / "out" / ".project.yaml.draft").write_text("killed while it wr")
    assert main(command()) == 0


def test_home_is_found_in_flags_and_files(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pool / "home"))
    (pool / "settings.yaml").write_text(
        "images: ~/pool\nout: ~/out\nlabelled: ~/l.txt\nclasses: [a, b]\nclass_weights: {a: 2}\n"
    )
    config = parse(["--model=~/m.ts", "--reject", "~/r.txt", "--config", str(pool / "settings.yaml")])
    home = str(pool / "home")
    assert [config.next.model, config.images, config.out, config.next.labelled, config.reject] == [
        f"{home}/{name}" for name in ("m.ts", "pool", "out", "l.txt", "r.txt")
    ]
    assert (config.classes, config.next.class_weights) == ("a,b", '{"a": 2}')
    with pytest.raises(UserError, match="--out ~nobody-has-this-name/x: no such home folder"):
        parse(["--model", "m:f", "--images", "x", "--out=~nobody-has-this-name/x"])


SPOILT = ("a/frame_0030.png", "b/frame_0240.png")


@pytest.fixture
def spoilt(pool: Path) -> Path:
    """The pool with one picture cut short and one emptied, and without them a folder "good"."""
    shutil.copytree(pool / "pool", pool / "good")
    for name in SPOILT:
        (pool / "good" / name).unlink()
    cut, empty = (pool / "pool" / name for name in SPOILT)
    cut.write_bytes(cut.read_bytes()[:-100])
    empty.write_bytes(b"")
    return pool


@pytest.mark.parametrize(
    "more",
    [
        ["--batch_size", "3"],
        ["--strategy", "random", "--min_gap", "0", "--n", "37"],
        ["--strategy", "entropy", "--regions", "4x3", "--n", "2"],
    ],
    ids=["alges-img", "random", "windows"],
)
def test_files_that_cannot_be_used_are_left_out_as_if_they_were_not_there(
    spoilt: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (spoilt / "old.txt").write_text(f"{SPOILT[1]}\na/frame_0000.png\n")
    more += ["--labelled", "old.txt"]
    assert main(command(*more, "--on_bad_image", "stop")) == 2
    said = capsys.readouterr().err
    assert "(or leave such files out: --on_bad_image skip)" in said
    assert any(name in said for name in SPOILT)
    assert main(command(*more)) == 0
    said = capsys.readouterr().out
    left_out = {row["id"]: row["reason"] for row in rows_of(spoilt / ROUND / "left_out.csv")}
    assert set(left_out) == set(SPOILT[:1] if "random" in more else SPOILT)  # what is labelled no draw looks at
    page = html.unescape((spoilt / ROUND / "index.html").read_text())
    for reason in left_out.values():
        assert f"left out: {reason}" in said
        assert f"<li>{reason}</li>" in page
    (spoilt / "old.txt").write_text("a/frame_0000.png\n")
    assert main([*command(*more, out="expected"), "--images", "good"]) == 0
    assert picks(spoilt / "out") == picks(spoilt / "expected")


def boxes(row: dict[str, str]) -> tuple[slice, slice]:
    x, y, width, height = (int(row[name]) for name in ("x", "y", "width", "height"))
    return slice(y, y + height), slice(x, x + width)


def test_windows_are_listed_with_their_share_and_masks_end_at_them(pool: Path) -> None:
    assert main(command("--regions", "4x3", n=5)) == 0
    rows = picks(pool / "out")
    assert float(rows[-1]["budget_spent"]) == 1.0  # 48 x 32 divides evenly: five frames' pixels, sixty windows
    assert [float(row["budget_spent"]) for row in rows] == pytest.approx([(i + 1) / 60 for i in range(60)], abs=1e-6)
    assert len({row["id"] for row in rows}) == 60
    picked: dict[str, np.ndarray] = {}
    for row in rows:
        window = f"{row['frame']}#xywh={row['x']},{row['y']},{row['width']},{row['height']}"
        assert row["id"] == window
        picked.setdefault(row["frame"], np.zeros((32, 48), bool))[boxes(row)] = True
    for frame, inside in picked.items():
        mask = np.asarray(Image.open(pool / ROUND / "masks" / f"{frame}.png"))
        np.testing.assert_array_equal(mask != 255, inside)
        assert (pool / ROUND / "images" / frame).is_file()
        assert (pool / ROUND / "norm_maps" / f"{frame}.jpg").is_file()
    page = (pool / ROUND / "index.html").read_text()
    assert page.count("<svg ") == page.count('class="frame"') == len(picked)
    assert page.count("<rect ") == 60


def test_import_files_say_what_to_annotate_in_the_tools_own_libraries(pool: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="datumaro, CVAT's import library, is not installed")
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    from label_studio_sdk.label_interface import LabelInterface

    assert main(command("--regions", "4x3", n=5)) == 0
    windows: dict[str, set[tuple[float, ...]]] = {}
    for row in picks(pool / "out"):
        corner = tuple(float(row[name]) for name in ("x", "y", "width", "height"))
        windows.setdefault(row["frame"], set()).add(corner)
    masks = {frame: np.asarray(Image.open(pool / ROUND / "masks" / f"{frame}.png")) for frame in windows}
    with zipfile.ZipFile(pool / ROUND / "cvat.zip") as archive:
        archive.extractall(pool / "cvat")
    read = datumaro.Dataset.import_from(str(pool / "cvat"), "cvat")
    labels = [label.name for label in read.categories()[datumaro.AnnotationType.label].items]
    assert labels[:3] == ["wall", "vessel", "tool"]
    assert set(labels[3:]) == {"annotate", "refused"}
    assert {f"{item.id}.png" for item in read} == windows.keys()
    for item in read:
        boxes = [each for each in item.annotations if each.type == datumaro.AnnotationType.bbox]
        assert {(labels[box.label], *box.get_bbox()) for box in boxes} == {
            ("annotate", *window) for window in windows[f"{item.id}.png"]
        }
        found = np.full((32, 48), 255, np.uint8)
        for annotation in (each for each in item.annotations if each not in boxes):
            found[np.asarray(annotation.image, bool)] = annotation.label
        np.testing.assert_array_equal(found, masks[f"{item.id}.png"])
        assert item.media.data.shape == (32, 48, 3)
    interface = LabelInterface((pool / ROUND / "label_studio" / "config.xml").read_text())
    tasks = json.loads((pool / ROUND / "label_studio" / "tasks.json").read_text())
    assert len(tasks) == len(windows)
    sides = {"x": 48, "y": 32, "width": 48, "height": 32}
    for task in tasks:
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []
        frame, found = task["data"]["image"].removeprefix("/data/local-files/?d=images/"), set()
        painted = np.full((32, 48), 255, np.uint8)
        for value in (result["value"] for result in prediction["result"]):
            if "rle" not in value:
                found.add(tuple(round(value[name] * side / 100, 6) for name, side in sides.items()))
                continue
            alpha = brush.decode_rle(value["rle"]).reshape(32, 48, 4)[..., 3]
            painted[alpha > 0] = ("wall", "vessel", "tool").index(value["brushlabels"][0])
        assert found == windows[frame]
        np.testing.assert_array_equal(painted, masks[frame])


def test_refused_windows_are_replaced_and_corrected_ones_stay(pool: Path) -> None:
    assert main(command("--regions", "4x3", n=5)) == 0
    first = picks(pool / "out")
    frames = [row["frame"] for row in first]
    crowded = max(frames, key=frames.count)
    mine = [row for row in first if row["frame"] == crowded]
    path = pool / ROUND / "masks" / f"{crowded}.png"
    mask = np.array(Image.open(path))
    mask[boxes(mine[0])] = mask[boxes(mine[1])] = 2  # corrected by hand
    Image.fromarray(mask).save(path)
    alone = next(row["frame"] for row in first if row["frame"] != crowded)
    (pool / "refused.txt").write_text(f"{mine[1]['id']}\n{alone}\n")
    assert main(command("--regions", "4x3", "--reject", "refused.txt", n=5)) == 0
    second = picks(pool / "out")
    kept = [row["id"] for row in first if row["id"] != mine[1]["id"] and row["frame"] != alone]
    assert [row["id"] for row in second[: len(kept)]] == kept
    assert len(second) == 60
    assert not (pool / ROUND / "images" / alone).exists()
    assert alone not in {row["frame"] for row in second}
    mask = np.asarray(Image.open(path))
    assert (mask[boxes(mine[0])] == 2).all()
    inside = np.zeros((32, 48), bool)
    for row in second:
        if row["frame"] == crowded:
            inside[boxes(row)] = True
    np.testing.assert_array_equal(mask != 255, inside)
    before = files(pool / "out")
    assert main(command("--regions", "4x3", "--reject", "refused.txt", n=5)) == 0
    assert files(pool / "out") == before


def test_windows_of_the_last_round_are_labelled_in_the_next(pool: Path) -> None:
    assert main(command("--regions", "4x3", "--min_gap", "0", n=5)) == 0
    labelled = [row["id"] for row in picks(pool / "out")]
    (pool / "labelled.txt").write_text("\n".join([*labelled, "a/frame_0000.png"]))
    more = ["--regions", "4x3", "--min_gap", "0", "--labelled", "labelled.txt"]
    assert main(command(*more, out="next", n=20)) == 0
    found = picks(pool / "next")
    assert len(found) == 20 * 12
    assert not {row["id"] for row in found} & set(labelled)
    assert "a/frame_0000.png" not in {row["frame"] for row in found}


@pytest.mark.parametrize("regions", [[], ["--regions", "3x4"]], ids=["frames", "windows"])
def test_a_video_is_picked_from_by_time(pool: Path, camvid: Path, regions: list[str]) -> None:
    """Forty CamVid frames as ten seconds of video at four frames a second, of which two a second are asked for."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    sources = sorted((camvid / "train" / "images").iterdir())[:40]
    with av.open(str(pool / "drive.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for source in sources:
            small = np.asarray(Image.open(source).convert("RGB").resize((96, 72)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        container.mux(stream.encode())
    assert main([*command(*regions, "--fps", "2", n=4), "--images", "drive.mp4"]) == 0
    rows = picks(pool / "out")
    ids = {row.get("frame", row["id"]) for row in rows}
    times = sorted(float(name.removeprefix("drive.mp4@").removesuffix("s")) for name in ids)
    assert {row["video"] for row in rows} == {"drive.mp4"}
    assert set(times) <= {i / 2 for i in range(20)}
    assert min(np.diff(times)) >= 2  # the default gap is in seconds
    for name in ids:
        decoded = np.asarray(Image.open(pool / ROUND / "images" / f"{name}.png"), np.float32)
        seconds = float(name.removeprefix("drive.mp4@").removesuffix("s"))
        drawn = np.asarray(Image.open(sources[round(4 * seconds)]).convert("RGB").resize((96, 72)), np.float32)
        assert np.abs(decoded - drawn).mean() < 12  # the picture of that instant, less what the codec lost
        assert np.asarray(Image.open(pool / ROUND / "masks" / f"{name}.png.png")).shape == (72, 96)
    page = (pool / ROUND / "index.html").read_text()
    assert all(name in page for name in ids)


def test_classes_are_aimed_at_by_name(pool: Path) -> None:
    assert main(command("--class_weights", '{"wall": 0, "tool": 0}')) == 0
    assert {row["class"] for row in picks(pool / "out")} == {"vessel"}


def test_select_is_the_function_and_the_module_is_only_a_command() -> None:
    with pytest.raises(ImportError, match=r"python -m alges_fast\.select"):
        __import__("alges_fast.select")
    assert callable(alges_fast.select)
    said = subprocess.run(
        [sys.executable, "-m", "alges_fast.select", "--strategy", "full", "--model", "m:f", "--images", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2
    assert said.stderr.startswith("error: --images x")


def test_the_folder_is_a_project_and_goes_on_as_one(pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command()) == 0
    assert main(command("--seed", "1")) == 2
    assert "out is a project with another seed (0)" in capsys.readouterr().err
    assert main(command("--strategy", "entropy")) == 2
    assert "round 0 is out and nothing of it came back" in capsys.readouterr().err
    for row in picks(pool / "out")[:4]:
        mask = pool / "masks" / f"{row['id']}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 48), len(row["id"]) % 2 + int(row["rank"]) % 2, np.uint8)).save(mask)
    run("import", "out", "masks")
    run("next", "out", "-n", "3", "--model", "tiny_model:make", "--regions", "2x2")
    frames = {row["frame"] for row in rows_of(pool / "out/rounds/001/picks.csv")}
    assert frames.isdisjoint(row["id"] for row in picks(pool / "out"))


def test_without_a_model_it_is_the_cold_start_of_a_project(pool: Path) -> None:
    for regions in ([], ["--regions", "2x2"]):
        out = f"cold{len(regions)}"
        assert main([*command(*regions, out=out, n=4)[2:]]) == 0  # without --model
        run("new", f"p{out}", "--images", "pool", "--classes", "wall,vessel,tool", "--image_size", "32")
        run("next", f"p{out}", "-n", "4", "--desk", "frames", *regions)
        assert picks(pool / f"p{out}") == picks(pool / out)
        assert not (pool / f"{out}/rounds/000/masks").exists()


def test_nothing_is_read_but_the_picks_where_nothing_looks(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_trunk", lambda *_: pytest.fail("an encoder is built and nothing looks at it"))
    monkeypatch.setattr(scoring, "decoded", lambda *_: pytest.fail("frames are read and nothing looks at them"))
    (pool / "pool/a/frame_0000.png").write_bytes(b"")
    given = ["--images", "pool", "--out", "out", "--strategy", "strided", "--min_gap", "0"]
    assert main([*given, "-n", "39"]) == 0
    assert "a/frame_0000.png" not in {row["id"] for row in picks(pool / "out")}
    assert not (pool / ROUND / "label_studio/config.xml").exists()  # nobody has named classes
