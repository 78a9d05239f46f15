"""A project from nothing but frames to a trained model, through files for annotators and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alges_fast.annotation.exports import AnnotatedFrame, cvat_xml, file_name
from alges_fast.data.loading import palette
from alges_fast.models.saved import read_card
from alges_fast.project.cli import main
from alges_fast.project.folder import opened
from tests.data.trees import save
from tests.project.annotators import CLASSES, Annotator, begin, contents, refused, rows_of, run, said, within


def label(id: str) -> Any:
    with Image.open(f"p/labels/{file_name(id)}.png") as picture:
        return np.asarray(picture)


def test_two_rounds_of_frames_then_windows(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pool/broken.png").write_bytes(b"no picture")
    begin()
    run("next", "p", "-n", "10")
    first = Path("p/rounds/000")
    assert "broken.png" in (first / "left_out.csv").read_text(encoding="utf-8")
    assert len(annotator.frames(first / "picks.csv")) == 10
    assert (first / "index.html").read_text(encoding="utf-8").count("<li tabindex") == 10
    assert not (first / "masks").exists()  # there was no model to predict any
    run("next", "p", "-n", "10")  # the same again changes nothing
    assert [path.name for path in Path("p/rounds").iterdir()] == ["000"]

    part = annotator.cvat(first / "picks.csv", Path("part.xml"), only=slice(0, 4))
    assert "4 frames imported" in said(capsys, "import", "p", "part.xml")
    annotator.cvat(first / "picks.csv", part)
    # The rest: what is known already is not taken again.
    assert "6 frames imported" in said(capsys, "import", "p", "part.xml")
    assert "on 2 held-out frames" in said(capsys, "train", "p")

    run("next", "p", "-n", "2", "--regions", "3x4")
    second = Path("p/rounds/001")
    sent = annotator.frames(second / "picks.csv")
    assert sum(len(frame.windows) for frame in sent) == 24
    for frame in sent:
        with Image.open(second / "masks" / f"{frame.name}.png") as picture:
            outside = within(np.asarray(picture), frame.windows) != np.asarray(picture)
        assert not outside.any()
    annotator.cvat(second / "picks.csv", Path("all.xml"))
    run("import", "p", "all.xml", "--accept_untouched")
    run("train", "p")
    text = said(capsys, "status", "p")
    assert "p: 25 frames of 5 series of pictures" in text
    assert "10 frames and 24 windows" in text
    assert "next p -n 2 --regions 3x4" in text
    assert "große Ader" in Path("p/status.html").read_text(encoding="utf-8")

    with opened(Path("p")) as project:
        assert sum(windows is None for windows in project.labelled.values()) == 10
        for id, windows in project.labelled.items():
            np.testing.assert_array_equal(label(id), within(annotator.truth[id], windows or ()))
    rows = rows_of(Path("p/history.csv"))
    assert (rows[0]["frames"], rows[0]["windows"]) == ("10", "0")
    assert rows[1]["windows"] == "24"
    assert int(rows[1]["outline"]) > int(rows[0]["outline"])
    assert float(rows[1]["dice"]) > 0.5


def test_a_step_out_of_order_names_the_one_to_take(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "p"]) == 2
    assert "is no project: begin one with" in capsys.readouterr().err
    begin()
    begin()
    assert "project with another classes" in refused(
        capsys, "new", "p", "--images", "pool", "--classes", "a,b", "--image_size", "64"
    )
    assert "project next p -n 20 first" in refused(capsys, "train", "p")
    assert "no model is trained yet: python -m alges_fast.project train p" in refused(capsys, "export", "p")
    assert "nothing to import" in refused(capsys, "import", "p")
    assert "needs a trained model" in refused(capsys, "next", "p", "--strategy", "entropy")
    assert "unknown" in refused(capsys, "next", "p", "--strategy", "entropie")
    assert "--regions 4" in refused(capsys, "next", "p", "--regions", "4")
    run("next", "p", "-n", "4", "--strategy", "random")
    assert "project import p EXPORT first" in refused(capsys, "next", "p", "-n", "5", "--strategy", "random")
    assert "project import p EXPORT first" in refused(capsys, "train", "p")
    annotator.answer(0, train=False)
    assert "project train p first" in refused(capsys, "next", "p")
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    assert main(["new", "other", "--images", "pool", "--classes", "a,b"]) == 2
    with opened(Path("p")):
        assert "another process works there" in refused(capsys, "status", "p")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--encoder", "resnet18"], "packaged weights are of"),
        (["--encoder", "resnet18", "--encoder_weights", "gone.pth"], "gone.pth: no such file"),
        (["--encoder", "resnet81", "--encoder_weights", "imagenet"], "--encoder resnet81: unknown"),
        (["--encoder", "local-dir:x", "--encoder_weights", "imagenet"], "unknown"),
    ],
)
def test_an_encoder_that_cannot_be_had_begins_no_project(
    annotator: Annotator, capsys: pytest.CaptureFixture[str], flags: list[str], why: str
) -> None:
    assert why in refused(capsys, "new", "p", "--images", "pool", "--classes", "a,b", *flags)
    assert not Path("p").exists()


def test_a_folder_that_cannot_be_written_still_says_where_it_stands(
    annotator: Annotator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin()
    run("next", "p", "-n", "4", "--strategy", "random")
    for made in (".lock", "status.html"):
        Path("p", made).unlink(missing_ok=True)
    before = contents(Path("p"))
    monkeypatch.setattr("alges_fast.project.folder.os.access", lambda path, mode: False)
    assert "no page: p cannot be written" in said(capsys, "status", "p")
    assert contents(Path("p")) == before


def test_the_page_claims_nothing_of_picks_that_nobody_looked_at(annotator: Annotator) -> None:
    begin()
    run("next", "p", "-n", "4", "--strategy", "random")
    annotator.answer(0)
    pages = []
    for strategy in ("random", "alges-img"):
        run("next", "p", "-n", "2", "--regions", "4x4", "--strategy", strategy)
        pages.append(Path(f"p/rounds/{len(pages) + 1:03d}/index.html").read_text(encoding="utf-8"))
        annotator.answer(len(pages), "--accept_untouched", train=False)
        run("train", "p")
    assert ["without a look at any picture" in page for page in pages] == [True, False]
    assert ["what the model would learn" in page for page in pages] == [False, True]


def test_untouched_refused_replaced_and_unknown(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    begin("p", "--background", "wall")
    run("next", "p", "-n", "5", "--strategy", "random")
    annotator.answer(0)
    run("next", "p", "-n", "4")
    second = Path("p/rounds/001")
    sent = annotator.frames(second / "picks.csv")

    def predicted(name: str) -> Any:
        with Image.open(second / "masks" / f"{name}.png") as picture:
            return np.asarray(picture)

    # One as it was predicted, one corrected, one refused, one not begun.
    untouched = AnnotatedFrame(sent[0].name, predicted(sent[0].name), 1)
    xml = cvat_xml([untouched, sent[1], AnnotatedFrame(sent[2].name, sent[2].mask * 0 + 255, 1)], CLASSES, palette(3))
    empty = f'<image id="2" name="{sent[2].name}" width="60" height="48"'
    xml = xml.replace(f"{empty} />", f'{empty}><tag label="refused"/></image>')
    Path("b.xml").write_text(xml, encoding="utf-8")
    error = refused(capsys, "import", "p", "b.xml")
    assert f"{sent[0].name} came back exactly as the model predicted" in error
    assert "1 frames imported, 1 refused" in said(capsys, "import", "p", "b.xml", "--leave_untouched")
    assert "1 frames imported, 0 refused" in said(capsys, "import", "p", "b.xml", "--accept_untouched")
    np.testing.assert_array_equal(label(sent[0].name), predicted(sent[0].name))

    # Annotated again: the new label counts, the old one stays in the round.
    old = label(sent[1].name).copy()
    again = AnnotatedFrame(sent[1].name, (old + 1) % 3, 1)
    Path("c.xml").write_text(cvat_xml([again], CLASSES, palette(3)), encoding="utf-8")
    run("import", "p", "c.xml")
    np.testing.assert_array_equal(label(sent[1].name), again.mask)
    with Image.open(second / "returned" / "003" / "replaced" / f"{sent[1].name}.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), old)
    assert "nothing new came back" in said(capsys, "import", "p", "c.xml")

    # Nothing is taken of exports of which one is bad.
    new = AnnotatedFrame(sent[3].name, sent[3].mask, 1)
    Path("good.xml").write_text(cvat_xml([new], CLASSES, palette(3)), encoding="utf-8")
    Path("bad.xml").write_text(cvat_xml([again], ("wall", "spleen", "tool"), palette(3)), encoding="utf-8")
    assert "class 'spleen' is unknown" in refused(capsys, "import", "p", "good.xml", "bad.xml")
    unknown = AnnotatedFrame("OP 9/frame_0000.png", sent[3].mask, 1)
    Path("bad.xml").write_text(cvat_xml([unknown], CLASSES, palette(3)), encoding="utf-8")
    assert "OP 9/frame_0000.png is no frame" in refused(capsys, "import", "p", "good.xml", "bad.xml")

    # What was refused, or is out with an annotator, is not asked for again.
    run("train", "p")
    run("next", "p", "-n", "15", "--strategy", "random")
    third = {frame.name for frame in annotator.frames(Path("p/rounds/002/picks.csv"))}
    assert third.isdisjoint(frame.name for frame in sent)
    assert len(third) == 15


def test_labels_that_were_there_before_any_round(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    begin()
    for id in list(annotator.truth)[::3]:
        save(Path("masks") / f"{id}.png", annotator.truth[id])
    run("import", "p", "masks")
    run("train", "p")
    run("next", "p", "-n", "3")
    assert json.loads(Path("p/rounds/001/round.json").read_text())["model"] == 0
    asked = {frame.name for frame in annotator.frames(Path("p/rounds/001/picks.csv"))}
    assert asked.isdisjoint(list(annotator.truth)[::3])
    assert "labels that were there before; 8 frames" in said(capsys, "status", "p")


def picks_of(number: int) -> list[str]:
    return [row["id"] for row in rows_of(Path(f"p/rounds/{number:03d}/picks.csv"))]


def test_rejected_picks_are_replaced_and_never_come_back(
    annotator: Annotator, capsys: pytest.CaptureFixture[str]
) -> None:
    begin("p", "--background", "wall")
    asked = ("next", "p", "-n", "5")
    run(*asked)
    first = picks_of(0)
    Path("no.txt").write_text(f"{first[1]}\n")
    run(*asked, "--reject", "no.txt")
    second = picks_of(0)
    assert second[:4] == [first[0], *first[2:]]
    assert second[4] not in first
    images = Path("p/rounds/000/images")
    assert sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png")) == sorted(second)

    Path("no.txt").write_text(f"{second[0]}\n")  # what was rejected before stays rejected
    run(*asked, "--reject", "no.txt")
    third = picks_of(0)
    assert third[:4] == second[1:]
    assert first[1] not in third
    before = contents(Path("p"))
    run(*asked)  # the same without the file is the same round
    assert contents(Path("p")) == before
    Path("no.txt").write_text("OP 9/frame_0000.png\n")
    assert "OP 9/frame_0000.png is no id of the pool" in refused(capsys, *asked, "--reject", "no.txt")
    assert "--min_gap is -1.0" in refused(capsys, *asked, "--min_gap", "-1")

    annotator.answer(0)
    assert "2 refused" in said(capsys, "status", "p")
    asked = ("next", "p", "-n", "1", "--regions", "2x3")
    run(*asked)
    windows = picks_of(1)
    frames = {window.partition("#")[0] for window in windows}
    assert frames.isdisjoint({first[1], second[0]})
    frame = windows[0].partition("#")[0]
    Path("no.txt").write_text(f"{windows[-1]}\n{frame}\n")
    run(*asked, "--reject", "no.txt")
    now = picks_of(1)
    stayed = [window for window in windows[:-1] if not window.startswith(frame)]
    assert now[: len(stayed)] == stayed
    assert len(now) == len(windows)
    assert not any(window.startswith(frame) or window == windows[-1] for window in now)


def test_a_round_that_was_changed_since_is_not_chosen_again(
    annotator: Annotator, capsys: pytest.CaptureFixture[str]
) -> None:
    begin()
    asked = ("next", "p", "-n", "4", "--strategy", "random")
    run(*asked)
    Path("no.txt").write_text(picks_of(0)[0] + "\n")
    (Path("p/rounds/000/label_studio") / "server.json").write_text("{}")
    assert "round 0 is on a server" in refused(capsys, *asked, "--reject", "no.txt")
    (Path("p/rounds/000/label_studio") / "server.json").unlink()
    for number in range(40):
        Image.new("RGB", (60, 48)).save(f"pool/OP 0/extra_{number:04d}.png")
    assert "have changed since round 0 was chosen" in refused(capsys, *asked, "--reject", "no.txt")


def test_a_whole_network_in_the_place_of_the_head(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    begin("p", "--background", "wall")
    run("next", "p", "-n", "10")
    annotator.answer(0, train=False)
    assert "--steps is of another network: give --architecture too" in refused(capsys, "train", "p", "--steps", "2")
    assert "--epochs is no flag any more: give --steps" in refused(capsys, "train", "p", "--epochs", "2")
    assert "architecture 'unett' is unknown" in refused(capsys, "train", "p", "--architecture", "unett")
    small = ("--encoder", "tu-mobilenetv4_conv_small_050")
    run("train", "p", "--architecture", "unet", *small, "--steps", "4", "--lr", "0.01")
    run("train", "p")  # as the newest was trained, and it knows all labels
    assert [path.name for path in Path("p/models").iterdir()] == ["000"]
    card = read_card(Path("p/models/000/model.safetensors"))
    assert (card.architecture, card.encoder) == ("unet", "tu-mobilenetv4_conv_small_050")

    run("next", "p", "-n", "1", "--regions", "2x3")
    assert len(list(Path("p/rounds/001/masks").rglob("*.png"))) > 0
    annotator.answer(1, "--accept_untouched")
    facts = json.loads(Path("p/models/001/model.json").read_text())
    network = {"architecture": "unet", "encoder": "tu-mobilenetv4_conv_small_050", "encoder_weights": None, "steps": 4}
    network |= {"batch_size": 8, "lr": 0.01, "augment": "flip,scale,colour", "teacher": "frozen"}
    network["self_training"] = 0
    assert facts["network"] == network
    assert facts["dice"]["mean"][0] > 0
    run("train", "p", "--architecture", "frozen")
    assert json.loads(Path("p/models/002/model.json").read_text())["network"] == {"architecture": "frozen"}
    run("next", "p", "-n", "1")
    assert [row["architecture"] for row in rows_of(Path("p/history.csv"))] == ["unet", "unet", "frozen"]
    assert "Model 2 (head) knows" in said(capsys, "status", "p")
    page = Path("p/status.html").read_text(encoding="utf-8")
    assert page.count("<polyline") == 2  # a curve for each network
    assert re.findall(r'text-anchor="end">([a-z]+)</text>', page) == ["unet", "head"]


def test_the_head_and_then_its_encoder(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    begin("p", "--background", "wall")
    run("next", "p", "-n", "10")
    annotator.answer(0, train=False)
    assert "--teacher is of another network" in refused(
        capsys, "train", "p", "--architecture", "tuned", "--teacher", "frozen"
    )
    run("train", "p", "--architecture", "tuned", "--steps", "3")
    facts = json.loads(Path("p/models/000/model.json").read_text())
    assert facts["network"] == {
        "architecture": "tuned",
        "steps": 3,
        "batch_size": 8,
        "lr": 5e-4,
        "augment": "flip,scale,colour",
    }
    run("next", "p", "-n", "1", "--regions", "2x3", "--strategy", "alges-effort")
    annotator.answer(1, "--accept_untouched")
    assert [row["architecture"] for row in rows_of(Path("p/history.csv"))] == ["tuned", "tuned"]
    assert "Model 1 (tuned) knows" in said(capsys, "status", "p")
