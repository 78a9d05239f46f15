"""A project as a data set of nnU-Net, and its predictions back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from alges_fast.annotation.exports import file_name
from alges_fast.errors import UserError
from alges_fast.project.config import ProjectConfig
from alges_fast.project.folder import opened
from alges_fast.project.nnunet import folds
from alges_fast.project.nnunet_names import case_of, label_names
from tests.project.annotators import Annotator, begin, contents, refused, rows_of, run, small_pool, within
from tests.project.annotators import said as printed

NNUNET = os.environ.get("ALGES_FAST_NNUNET", "")
"""Python of an environment with nnunetv2, which wants one of its own."""

FEW_STEPS = """
import sys
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
whole = nnUNetTrainer.__init__
def few_steps(self, *args, **more):
    whole(self, *args, **more)
    self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 8, 2
nnUNetTrainer.__init__ = few_steps
from nnunetv2.run.run_training import run_training_entry
run_training_entry()
"""
"""nnU-Net's own training of one epoch, which is of 250 steps otherwise."""


@pytest.fixture
def annotator(here: Path) -> Annotator:
    """A project `p` with five frames of three videos labelled, and eight windows in others; a head knows them."""
    annotator = small_pool(here / "pool", n_videos=3, n_frames=6)
    begin()
    for number, asked in enumerate((("-n", "5"), ("-n", "1", "--regions", "2x4", "--strategy", "random"))):
        run("next", "p", *asked, "--desk", "frames")
        annotator.answer(number, "--accept_untouched")
    return annotator


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def cases(folder: Path) -> set[str]:
    return {path.name.removesuffix(".png").removesuffix("_0000") for path in folder.iterdir()}


def labelled() -> dict[str, Any]:
    with opened(Path("p")) as project:
        return dict(project.labelled)


def predict(annotator: Annotator, out: Path, *, probabilities: bool, shift: int = 0) -> dict[str, NDArray[np.uint8]]:
    """What a network that is mostly right would leave: id -> class ids, with nnU-Net's files for imagesTs."""
    out.mkdir()
    shutil.copy("d/dataset.json", out)
    known = {case_of(id): id for id in annotator.truth}
    said = {}
    for case in cases(Path("d/imagesTs")):
        said[known[case]] = np.roll(annotator.truth[known[case]], shift, 1)
        said[known[case]][:3, :3] = 255  # of no class: background, where no class is
        Image.fromarray(said[known[case]] + 1).save(out / f"{case}.png")
        if probabilities:
            ids = (said[known[case]] + 1)[None, None]
            shares = np.where(ids == np.arange(4)[:, None, None, None], 0.91, 0.03).astype(np.float32)
            np.savez_compressed(out / f"{case}.npz", probabilities=shares[:, 0][:, None])
    return said


def test_a_data_set_holds_what_is_labelled_and_ignores_the_rest(annotator: Annotator) -> None:
    run("export", "p", "--nnunet", "d")
    facts = json.loads(Path("d/dataset.json").read_text())
    assert facts["labels"] == {"background": 0, "wall": 1, "große Ader": 2, "tool": 3, "ignore": 4}
    assert list(facts["channel_names"]) == ["0", "1", "2"]
    assert (facts["file_ending"], facts["overwrite_image_reader_writer"]) == (".png", "NaturalImage2DIO")
    of_project = labelled()
    assert any(windows is not None for windows in of_project.values())
    assert facts["numTraining"] == len(of_project)
    assert cases(Path("d/imagesTr")) == cases(Path("d/labelsTr")) == {case_of(id) for id in of_project}
    for id, windows in of_project.items():
        truth = within(annotator.truth[id], windows or ())
        np.testing.assert_array_equal(
            read(Path("d/labelsTr") / f"{case_of(id)}.png"), np.where(truth == 255, 4, truth + 1)
        )
        picture = read(Path("d/imagesTr") / f"{case_of(id)}_0000.png")
        np.testing.assert_array_equal(picture, read(Path("pool") / id))
    assert cases(Path("d/imagesTs")) == {case_of(id) for id in annotator.truth if id not in of_project}
    splits = json.loads(Path("d/splits_final.json").read_text())
    video = {case_of(id): id.partition("/")[0] for id in annotator.truth}
    assert sorted(case for split in splits for case in split["val"]) == sorted(map(case_of, of_project))
    for split in splits:
        assert sorted(split["train"] + split["val"]) == sorted(map(case_of, of_project))
        assert not {video[case] for case in split["train"]} & {video[case] for case in split["val"]}
    assert len(splits) == len({video[case_of(id)] for id in of_project})


def test_taught_frames_are_trained_on_and_never_tested_on(annotator: Annotator) -> None:
    Path("pool/OP 0/broken.png").write_bytes(b"no picture")  # is left out, as in all steps
    run("export", "p", "--nnunet", "d", "--teach", "--predict", "2")
    of_project = labelled()
    right = 0.0
    for id, truth in annotator.truth.items():
        windows, case = of_project.get(id, ()), case_of(id)
        if windows is None:
            assert not (Path("d/labelsTr") / f"{case}_taught.png").exists()
            continue
        taught = read(Path("d/labelsTr") / f"{case}_taught.png")
        assert taught.max() < 4  # nothing is ignored
        right += (taught == truth + 1).mean() / len(annotator.truth)
        if windows:
            known = within(truth, windows)
            np.testing.assert_array_equal(taught[known != 255], known[known != 255] + 1)
    assert right > 0.5
    for split in json.loads(Path("d/splits_final.json").read_text()):
        assert not any(case.endswith("_taught") for case in split["val"])
        tested = {case.removesuffix("_taught") for case in split["val"]}
        videos = {id.partition("/")[0] for id in annotator.truth if case_of(id) in tested}
        trained = {case_of(id) for id in annotator.truth if id.partition("/")[0] not in videos}
        assert {case.removesuffix("_taught") for case in split["train"]} == trained
        assert {case for case in split["train"] if not case.endswith("_taught")} <= {
            case_of(id) for id, windows in of_project.items() if windows is None
        }
    facts = json.loads(Path("d/dataset.json").read_text())
    assert facts["numTraining"] == len(list(Path("d/labelsTr").iterdir()))
    assert len(cases(Path("d/imagesTs"))) in (1, 2)


def test_predictions_go_out_to_be_corrected_and_choose(
    annotator: Annotator, capsys: pytest.CaptureFixture[str]
) -> None:
    run("export", "p", "--nnunet", "d", "--predict", "6")
    said = predict(annotator, Path("predicted"), probabilities=True, shift=3)
    least = sorted(said)[4]  # the network is unsure of this one
    path = Path("predicted") / f"{case_of(least)}.npz"
    np.savez(path, probabilities=np.full((4, 1, *said[least].shape), 0.25, np.float32))
    run("import", "p", "--predictions", "predicted")
    assert "6 frames predicted, 6 of them with probabilities" in capsys.readouterr().out
    run("next", "p", "-n", "3", "--strategy", "entropy")
    picked = [row["frame"] for row in rows_of(Path("p/rounds/002/picks.csv"))]
    assert picked[0] == least
    for id in picked:
        np.testing.assert_array_equal(read(Path(f"p/rounds/002/masks/{file_name(id)}.png")), said[id])
    run("next", "p", "-n", "3", "--strategy", "entropy")  # the same again
    assert not Path("p/rounds/003").exists()
    shutil.rmtree("p/rounds/002")
    run("next", "p", "-n", "1", "--regions", "2x4", "--strategy", "alges-effort")  # windows, by gradients
    for path in Path("p/rounds/002/masks").rglob("*.png"):
        sent, id = read(path), path.relative_to("p/rounds/002/masks").as_posix().removesuffix(".png")
        assert (sent != 255).any()
        np.testing.assert_array_equal(sent[sent != 255], said[id][sent != 255])
    shutil.rmtree("p/rounds/002")
    run("next", "p", "-n", "3", "--strategy", "entropy")
    annotator.cvat(Path("p/rounds/002/picks.csv"), Path("returned.xml"))
    run("import", "p", "returned.xml")  # what was corrected came back
    for id in picked:
        np.testing.assert_array_equal(read(Path(f"p/labels/{file_name(id)}.png")), annotator.truth[id])
    assert "labels came in since" in printed(capsys, "status", "p")
    assert "project train p first" in refused(capsys, "next", "p", "-n", "3")


def test_masks_alone_are_corrected_where_the_head_chooses(annotator: Annotator) -> None:
    run("export", "p", "--nnunet", "d")
    said = predict(annotator, Path("predicted"), probabilities=False, shift=3)
    run("import", "p", "--predictions", "predicted")
    run("next", "p", "-n", "2")
    sent = contents(Path("p/rounds/002/masks"))
    assert len(sent) == 2
    for name in sent:
        np.testing.assert_array_equal(read(Path("p/rounds/002/masks") / name), said[name.removesuffix(".png")])


def test_what_is_wrong_is_one_line(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", "p", "--nnunet", "d")
    run("export", "p", "--nnunet", "d", "--predict", "3")  # an earlier one makes room
    assert len(cases(Path("d/imagesTs"))) == 3
    Path("other").mkdir()
    Path("other/notes").touch()
    assert "holds other files" in refused(capsys, "export", "p", "--nnunet", "other")
    assert "give --nnunet" in refused(capsys, "export", "p", "--teach")
    predict(annotator, Path("predicted"), probabilities=True)
    assert "no such folder" in refused(capsys, "import", "p", "--predictions", "nowhere")
    stray = Path("predicted/stray.png")
    shutil.copy(next(Path("predicted").glob("*.png")), stray)
    assert "stray" in refused(capsys, "import", "p", "--predictions", "predicted")
    stray.unlink()
    npz = next(Path("predicted").glob("*.npz"))
    whole = npz.read_bytes()
    for broken in (whole[:300], b"no zip"):
        npz.write_bytes(broken)
        assert npz.name in refused(capsys, "import", "p", "--predictions", "predicted")
    np.savez(npz, probabilities=np.zeros((4, 1, 9, 9), np.float32))
    assert "(4, 1, 48, 60) are of this frame" in refused(capsys, "import", "p", "--predictions", "predicted")
    np.savez(npz, probabilities=np.full((4, 1, 48, 60), {}, object))
    assert npz.name in refused(capsys, "import", "p", "--predictions", "predicted")
    npz.write_bytes(whole)
    mask = npz.with_suffix(".png")
    Image.fromarray(np.full((48, 60), 4, np.uint8)).save(mask)
    assert "no label of the data set" in refused(capsys, "import", "p", "--predictions", "predicted")
    facts = json.loads(Path("predicted/dataset.json").read_text())
    Path("predicted/dataset.json").write_text(json.dumps({**facts, "labels": {"background": 0, "tool": 1}}))
    assert "not this project's" in refused(capsys, "import", "p", "--predictions", "predicted")


@pytest.mark.parametrize(
    ("classes", "background", "values"),
    [
        (("tool", "Background", "liver"), None, [1, 0, 2]),
        (("sky", "road", "background"), "road", None),
        (("sky", "road"), "road", [1, 0]),
        (("sky", "road"), None, [1, 2]),
        (("sky", "ignore"), None, None),
    ],
)
def test_background_is_0_and_ignore_the_highest(classes: Any, background: Any, values: Any) -> None:
    config = ProjectConfig("pool", classes, background)
    if values is None:
        with pytest.raises(UserError, match="meaning of its own"):
            label_names(config)
        return
    names = label_names(config)
    assert names.values[: len(classes)].tolist() == values
    assert names.values[255] == names.names["ignore"] == max(names.names.values())
    assert sorted(names.names.values()) == list(range(len(names.names)))  # nnU-Net wants them without gaps
    assert names.ids[values].tolist() == list(range(len(classes)))


def test_folds_keep_videos_together_and_cut_one_into_parts_of_its_course() -> None:
    videos = {f"{video}{n}": video for video, many in (("a", 9), ("b", 3), ("c", 2), ("d", 2)) for n in range(many)}
    assert folds(videos, 3) == [[id for id in videos if id[0] == "a"], ["b0", "b1", "b2"], ["c0", "c1", "d0", "d1"]]
    assert folds({str(n): "a" for n in range(7)}, 3) == [["0", "1", "2"], ["3", "4"], ["5", "6"]]
    assert folds({"0": "a"}) == [["0"]]


def test_cases_differ_where_frames_do() -> None:
    ids = ["a/b_c.png", "a_b/c.png", "a/b-c.png", "A/b_c.png", "é.png", "e\u0301.png"]
    ids += ["x.mp4@00001.000s", "x.mp4@00001.500s"]
    found = [case_of(id) for id in ids]
    assert len({case.lower() for case in found}) == len(ids)
    assert all(case.isascii() and not case.endswith("_seg") for case in found)


@pytest.mark.skipif(
    not NNUNET, reason="no nnU-Net: ALGES_FAST_NNUNET is to be the python of an environment that has it"
)
def test_the_real_nnunet_learns_from_it_and_chooses(annotator: Annotator, capsys: pytest.CaptureFixture[str]) -> None:
    """Integrity check, plan, preprocessing, a few steps, test of the fold, prediction, and back."""
    places = {f"nnUNet_{name}": str(Path(name).resolve()) for name in ("raw", "preprocessed", "results")}
    for place in places.values():
        Path(place).mkdir()
    few = {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def nnunet(entry: str, argv: str) -> str:
        module, _, function = entry.partition(":")
        code = entry if "\n" in entry else f"from {module} import {function}; {function}()"
        command = [NNUNET, "-c", code, *argv.split()]
        ended = subprocess.run(command, env=kept | places | few, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
        return ended.stdout

    run("export", "p", "--nnunet", "raw/Dataset501_small", "--teach", "--predict", "4")
    plan = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry"
    checked = nnunet(plan, "-d 501 -c 2d --verify_dataset_integrity -np 1 -npfp 1")
    assert "verify_dataset_integrity Done" in checked
    shutil.copy("raw/Dataset501_small/splits_final.json", "preprocessed/Dataset501_small")
    trained = nnunet(FEW_STEPS, "501 2d 0 -tr nnUNetTrainer_1epoch -device cpu")
    assert "The split file contains 3 splits" in trained
    model = Path("results/Dataset501_small/nnUNetTrainer_1epoch__nnUNetPlans__2d/fold_0")
    tested = json.loads(Path("raw/Dataset501_small/splits_final.json").read_text())[0]["val"]
    assert cases(model / "validation") >= set(tested)
    few_processes = "-npp 1 -nps 1 -device cpu --save_probabilities"
    what = f"-i raw/Dataset501_small/imagesTs -o predicted -d 501 -c 2d -f 0 -tr nnUNetTrainer_1epoch {few_processes}"
    nnunet("nnunetv2.inference.predict_from_raw_data:predict_entry_point", what)
    capsys.readouterr()
    run("import", "p", "--predictions", "predicted")
    assert "4 frames predicted, 4 of them with probabilities" in capsys.readouterr().out
    run("next", "p", "-n", "2", "--strategy", "entropy")
    unsure = {}
    for id in annotator.truth:
        if (path := Path("predicted") / f"{case_of(id)}.npz").exists():
            shares = np.load(path)["probabilities"][1:, 0].astype(np.float64)
            shares /= shares.sum(0)
            unsure[id] = -(shares * np.log(shares.clip(1e-6))).sum(0).mean()
    picked = [row["frame"] for row in rows_of(Path("p/rounds/002/picks.csv"))]
    assert len(picked) == 2
    assert set(picked) <= set(sorted(unsure, key=unsure.__getitem__)[-4:])  # on a coarser grid, nearly the same
    for id in picked:
        values = read(Path("predicted") / f"{case_of(id)}.png").astype(int) - 1
        np.testing.assert_array_equal(read(Path(f"p/rounds/002/masks/{file_name(id)}.png")), values % 256)
