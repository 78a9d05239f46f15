"""A round through a real Label Studio server, with the server's API as the annotator's hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alges_fast.annotation.desk import DESK
from alges_fast.annotation.exports import label_studio_tasks
from alges_fast.project.cli import main
from alges_fast.project.folder import opened
from tests.project import label_studio_server
from tests.project.annotators import Annotator, begin, camvid_pool, contents, run, within

sdk = pytest.importorskip("label_studio_sdk", reason="label-studio-sdk is not installed")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[label_studio_server.Server]:
    if (why := label_studio_server.missing()) is not None:
        pytest.skip(why)
    with label_studio_server.running(tmp_path_factory.mktemp("label-studio") / "data") as running:
        yield running


@pytest.fixture
def client(server: label_studio_server.Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", server.key)
    return sdk.LabelStudio(base_url=server.url, api_key=server.key)


def results(annotator: Annotator, round: Path) -> dict[str, list[dict[str, Any]]]:
    """Frame, or window alone -> what is true of it, as the editor of Label Studio submits it."""
    pictures = annotator.frames(round / "picks.csv")
    if (round / DESK).exists():
        pictures = annotator.on_sheets(round, alone=True)
    tasks = label_studio_tasks(pictures, annotator.classes, image_prefix="", model_version="truth")
    return {task["data"]["frame"]: task["predictions"][0]["result"] for task in json.loads(tasks)}


def server_project(round: Path) -> int:
    return int(json.loads((round / "label_studio" / "server.json").read_text())["project"])


def annotate(client: Any, annotator: Annotator, round: Path, which: slice = slice(None)) -> Sequence[Any]:
    """Submit the truth of these tasks; all of them are returned, in their order."""
    true = results(annotator, round)
    tasks = sorted(client.tasks.list(project=server_project(round), fields="all"), key=lambda task: task.id)
    for task in tasks[which]:
        client.annotations.create(id=task.id, result=true[task.data["frame"]], lead_time=9.5)
    return tasks


def test_half_finished_one_refused_one_corrected(
    server: label_studio_server.Server,
    client: Any,
    annotator: Annotator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin()
    assert main(["import", "p", "--label_studio", server.url]) == 2
    assert "no round was sent" in capsys.readouterr().err
    first, ask = Path("p/rounds/000"), ["next", "p", "-n", "6", "--label_studio", server.url]
    assert main(ask) == 0
    assert main(ask) == 0  # the same again makes nothing twice
    assert len(list(client.tasks.list(project=server_project(first), fields="all"))) == 6
    assert len(list(client.projects.list())) == 1

    tasks = annotate(client, annotator, first, slice(0, 3))
    client.annotations.create(id=tasks[3].id, result=[], was_cancelled=True)
    fetch = ["import", "p", "--label_studio", server.url]
    assert main(fetch) == 0
    assert "3 frames imported, 1 refused" in capsys.readouterr().out
    assert main(fetch) == 0
    assert "nothing new came back" in capsys.readouterr().out

    # One of the finished is corrected on the server, another one is finished.
    corrected = tasks[0].data["frame"]
    changed = Annotator({**annotator.truth, corrected: (annotator.truth[corrected] + 1) % 3}, annotator.classes)
    (annotation,) = client.annotations.list(tasks[0].id)
    client.annotations.update(annotation.id, result=results(changed, first)[corrected])
    client.annotations.create(id=tasks[4].id, result=results(annotator, first)[tasks[4].data["frame"]])
    assert main(fetch) == 0
    assert "2 frames imported, 0 refused" in capsys.readouterr().out
    with opened(Path("p")) as project:
        assert project.refused == {tasks[3].data["frame"]}
        assert set(project.labelled) == {task.data["frame"] for task in [*tasks[:3], tasks[4]]}
        for id in project.labelled:
            np.testing.assert_array_equal(project.label(id), changed.truth[id])
        assert project.missing == [tasks[5].data["frame"]]

    # A prediction that is submitted as it is, is asked about.
    run("train", "p")
    run("next", "p", "-n", "2", "--label_studio", server.url)
    # A server that refuses the key, or is none, is one line; the key is in none and in no file.
    assert not any(server.key.encode() in file for file in contents(Path("p")).values())
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong")
    for address, says in ((server.url, "key"), ("http://127.0.0.1:9", "does not answer"), ("p", "give the server's")):
        assert main(["next", "p", "-n", "2", "--label_studio", address]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
        assert "wrong" not in error
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    assert main(fetch) == 2
    assert "LABEL_STUDIO_API_KEY is not set" in capsys.readouterr().err
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", server.key)

    second = sorted(client.tasks.list(project=server_project(Path("p/rounds/001")), fields="all"), key=lambda t: t.id)
    client.annotations.create(
        id=second[0].id,
        result=json.loads(Path("p/rounds/001/label_studio/tasks.json").read_text())[0]["predictions"][0]["result"],
    )
    capsys.readouterr()
    assert main(fetch) == 2
    assert "came back exactly as the model predicted" in capsys.readouterr().err
    assert main([*fetch, "--accept_untouched"]) == 0


def test_five_rounds_of_windows_equal_those_through_cvat(
    server: label_studio_server.Server, client: Any, camvid: Path, here: Path
) -> None:
    """One project through the server, windows alone; one through CVAT's files, on sheets and on frames in turn.

    The same annotator: equal labels, and equal models.
    """
    annotator = camvid_pool(camvid, here / "pool", every=18)
    for name in ("server", "files"):
        begin(name, classes=annotator.classes)
    for number in range(5):
        ask = ["-n", "2", "--regions", "3x3"]
        run("next", "server", *ask, "--label_studio", server.url)
        run("next", "files", *ask)
        rounds = [Path(name) / "rounds" / f"{number:03d}" for name in ("server", "files")]
        assert (rounds[0] / "picks.csv").read_bytes() == (rounds[1] / "picks.csv").read_bytes()
        annotate(client, annotator, rounds[0])
        pictures = annotator.on_sheets(rounds[1], alone=False)
        if number % 2:
            pictures = annotator.frames(rounds[1] / "picks.csv")
        export = annotator.cvat_of(pictures, Path("export.xml"))
        run("import", "server", "--label_studio", server.url, "--accept_untouched")
        run("import", "files", str(export), "--accept_untouched")
        for name in ("server", "files"):
            run("train", name)
    assert contents(Path("server/labels")) == contents(Path("files/labels"))
    assert Path("server/history.csv").read_bytes() == Path("files/history.csv").read_bytes()
    with opened(Path("server")) as project:
        for id, windows in project.labelled.items():
            np.testing.assert_array_equal(project.label(f"{id}"), within(annotator.truth[id], windows or ()))
        assert {picture.seconds for import_ in project.imports for picture in import_.times} == {9.5}
        dice = [model.facts["dice"]["mean"][0] for model in project.models if model.facts["dice"]]
    assert len(dice) == 5
