"""A round's folder may be deleted: nothing that is still there is overwritten, and every step goes on."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from alges_fast import atomic
from alges_fast.errors import UserError
from alges_fast.project.cli import main
from alges_fast.project.config import ProjectConfig
from alges_fast.project.folder import ImportDraft, Project, opened
from tests.project.annotators import CLASSES, begin, contents, run, said, small_pool


@pytest.fixture(scope="module")
def three_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool and a project of three rounds, each annotated and trained, in a folder to copy."""
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ALGES_FAST_CACHE", str(folder / "cache"))
        annotator = small_pool(folder / "pool")
        begin()
        for number in range(3):
            run("next", "p", "-n", "3", "--strategy", "random")
            annotator.answer(number, "--accept_untouched")
    return folder


@pytest.fixture
def copied(three_rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That project in the working directory."""
    shutil.copytree(three_rounds / "p", tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(three_rounds / "cache"))


def test_of_damaged_weights_it_is_said_what_makes_them_again(copied: None, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("p/models/002/model.safetensors")
    for damage in (lambda: weights.write_bytes(b"x"), weights.unlink):
        damage()
        assert main(["next", "p", "-n", "1"]) == 2
        assert "cannot be read: restore it, or delete p/models/002 and train" in capsys.readouterr().err
    shutil.rmtree("p/models/002")
    run("train", "p")
    run("next", "p", "-n", "1")


def go_on() -> None:
    """Another round, which is annotated."""
    run("next", "p", "-n", "3", "--strategy", "random")
    small_pool(Path("pool")).answer(3, "--accept_untouched", train=False)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_deleted_round_is_a_hole(copied: None, capsys: pytest.CaptureFixture[str], lost: int) -> None:
    shutil.rmtree(f"p/rounds/{lost:03d}")
    before = contents(Path("p/rounds")) | contents(Path("p/models"))
    missing = f"round {lost} is missing: what it picked and what came back for it no longer count"
    assert missing in said(capsys, "status", "p")
    run("train", "p")
    assert json.loads(Path("p/models/003/model.json").read_text())["frames"] == 6
    go_on()
    assert sorted(path.name for path in Path("p/rounds").iterdir())[-1] == "003"
    assert [path.name for path in Path("p/rounds/003/returned").iterdir()] == ["003"]
    run("train", "p")
    assert f"round {lost} is missing" in said(capsys, "status", "p")

    after = contents(Path("p/rounds")) | contents(Path("p/models"))
    assert {name: after[name] for name in before} == before
    assert sorted(path.name for path in Path("p/models").iterdir()) == ["000", "001", "002", "003", "004"]


def test_an_older_model_may_go_and_the_newest_stays(copied: None) -> None:
    shutil.rmtree("p/models/000")
    newest = contents(Path("p/models/002"))
    go_on()
    run("train", "p")
    assert contents(Path("p/models/002")) == newest
    assert Path("p/models/003/model.json").exists()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "pool").mkdir()
    ProjectConfig(str(tmp_path / "pool"), CLASSES).write(tmp_path / "p")
    return Project(tmp_path / "p", ProjectConfig.read(tmp_path / "p"))


def import_one(project: Project, id: str) -> None:
    with project.drafting() as folder:
        draft = ImportDraft(folder / "0")
        draft.add(id, None, f"{id}.png", np.zeros((4, 4), np.uint8))
        project.add_import(draft, ["x"])


def test_a_project_of_an_older_version_knows_its_models(project: Project) -> None:
    import_one(project, "a")
    atomic.write_json(project.root / "models" / "000" / "model.json", {"imports": 1, "round": 0})
    project.forget()
    assert project.known_to(project.models[0])
    import_one(project, "b")
    assert not project.known_to(project.models[0])


def test_a_project_of_an_older_version_goes_on(copied: None, capsys: pytest.CaptureFixture[str]) -> None:
    """What its files do not have yet counts as what those versions did, or as the flag's default."""
    before = said(capsys, "status", "p")
    of_first = {
        "round.json": {"asked", "model"},
        "import.json": {"frames", "refused", "sources", "outline"},
        "model.json": {"imports", "round", "strategy", "frames", "windows", "pixels", "outline", "held_out"},
    }
    of_first["model.json"] |= {"whole_videos", "dice", "gain"}
    for path in [path for path in Path("p").rglob("*.json") if path.name in of_first]:
        facts = {name: value for name, value in json.loads(path.read_text()).items() if name in of_first[path.name]}
        if "asked" in facts:
            facts["asked"] = {name: facts["asked"][name] for name in ("n", "strategy")}
        path.write_text(json.dumps(facts))
    config = yaml.safe_load(Path("p/project.yaml").read_text())
    Path("p/project.yaml").write_text(
        yaml.safe_dump({name: config[name] for name in ("images", "classes", "image_size")})
    )
    Path("p/history.csv").unlink()
    assert said(capsys, "status", "p") == before
    picks = Path("p/rounds/002/picks.csv").read_bytes()
    run("next", "p", "-n", "3")  # by the model: a round of its own
    small_pool(Path("pool")).cvat(Path("p/rounds/003/picks.csv"), Path("a.xml"))
    run("import", "p", "a.xml", "--accept_untouched")
    run("train", "p")
    run("status", "p")
    assert Path("p/rounds/002/picks.csv").read_bytes() == picks


def test_what_holds_picks_or_labels_is_never_cleared(project: Project) -> None:
    import_one(project, "a")
    (project.root / "rounds" / "001" / "returned" / "007").mkdir(parents=True)  # its round.json is gone
    (project.root / "rounds" / "002").mkdir()
    (project.root / "rounds" / "002" / "picks.csv").write_text("rank\n")
    project.forget()
    before = contents(project.root)
    begun = project.begin_round({"n": 1}, None)
    assert begun.number == 3
    assert project.lost_rounds == [1, 2]
    assert project.begin_round({"n": 2}, None).number == 3  # never out: it makes room
    after = contents(project.root)
    assert {name: after[name] for name in before} == before


def test_a_round_that_could_not_be_begun_leaves_no_hole(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a kill, between the folder of a round and its first file."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            project.begin_round({"n": 1}, None)
    (project.root / "rounds" / "000" / ".round.json.draft").write_text("{")
    project.forget()
    assert project.lost_rounds == []
    assert project.begin_round({"n": 1}, None).number == 0


def test_of_a_lost_label_the_copy_is_named(project: Project) -> None:
    """The newest: each import has its frames' labels as they were after it."""
    import_one(project, "a")
    import_one(project, "a")
    label = project.label_path("a.png")
    for damage in (lambda: label.write_bytes(b""), label.unlink):
        damage()
        with pytest.raises(UserError, match=r"labels/a\.png\.png: .*; as it came back it is ") as raised:
            project.label("a.png")
    Path(str(raised.value).rpartition(" is ")[2]).rename(label)
    assert not project.label("a.png").any()


def test_an_imports_name_is_on_the_disk(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a rename is there only if its folder was synced after it, and so for every new folder."""
    synced: list[tuple[int, frozenset[str]]] = []
    fsync = atomic.os.fsync

    def recorded(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if path.is_dir():
            synced.append((path, frozenset(entry.name for entry in path.iterdir())))
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", recorded)
    import_one(project, "a/b")
    made = [path for path in project.root.rglob("*") if "draft" not in path.name]
    for path in made:
        # A draft's folder goes by its own name until it is renamed.
        places = {path.parent, Path(str(path.parent).replace("/rounds/000/returned/000", "/.imports.draft/0"))}
        assert any(folder in places and path.name in names for folder, names in synced), path


def test_locks_and_drafts_are_not_opened_through_links(tmp_path: Path, project: Project) -> None:
    precious = tmp_path / "precious"
    precious.write_text("dear")
    lock = project.root / ".lock"
    lock.symlink_to(precious)
    with pytest.raises(UserError, match=r"\.lock: a link or a pipe where a lock should be"), opened(project.root):
        pass
    lock.unlink()
    (project.root / ".status.html.draft").symlink_to(precious)
    atomic.write_text(project.root / "status.html", "page")
    assert (project.root / "status.html").read_text() == "page"
    lock.write_text("kept")
    with opened(project.root):
        pass
    assert (precious.read_text(), lock.read_text()) == ("dear", "kept")


def test_where_no_lock_works_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(atomic, "fcntl", None)
    for _ in range(2):
        with atomic.locked(tmp_path / ".lock") as alone:
            assert alone
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: no locks on this file system: start one process at a time there"
    ]


@pytest.mark.parametrize("place", ["afile", "afile/p"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "afile").touch()
    with pytest.raises(UserError, match="afile is a file, where a folder should be: choose another folder"):
        atomic.write_text(tmp_path / place / "config.yaml", "")


@pytest.mark.parametrize("pool", ["p", ".", "p/.."])
def test_a_project_is_not_in_its_own_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pool: str
) -> None:
    monkeypatch.chdir(tmp_path)
    small_pool(tmp_path / "p", 1, 1)
    before = contents(tmp_path)
    assert main(["new", "p", "--images", pool, "--classes", "a,b"]) == 2
    assert "holds the project p itself: choose a folder" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_pool_that_came_to_hold_its_project_is_refused(project: Project) -> None:
    ProjectConfig(str(project.root.parent), CLASSES).write(project.root)
    assert main(["status", str(project.root)]) == 2


def test_a_pool_that_moved_is_set_right_in_the_projects_file(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(project.config.images).rename(project.root.parent / "moved")
    assert main(["status", str(project.root)]) == 2
    error = capsys.readouterr().err
    assert f"the pool is not there: bring it back, or correct images in {project.root / 'project.yaml'}" in error


@pytest.mark.parametrize(
    "name", ["rounds/000/round.json", "rounds/000/returned/000/import.json", "models/000/model.json"]
)
@pytest.mark.parametrize("damage", ["", "{", "[]", "5", "{}", "[" * 100_000, '{"asked": 5}', "cut", "kinds", "flat"])
def test_a_damaged_file_of_the_project_is_one_line(project: Project, name: str, damage: str) -> None:
    import_one(project, "a")
    atomic.write_json(project.root / "models" / "000" / "model.json", {"imports": [0], "round": 0})
    path = project.root / name
    whole = path.read_text()
    facts = {key: [5] if isinstance(value, dict) else {"a": 5} for key, value in json.loads(whole).items()}
    damages = {"cut": whole[:-5], "kinds": json.dumps(facts), "flat": whole.replace("null", "[[1, 2, 3, -4]]")}
    path.write_text(damages.get(damage, damage))
    if damage == "flat" and "import" not in name:
        return
    project.forget()
    with pytest.raises(UserError, match=r"\.json is damaged") as caught:
        _ = project.rounds, project.imports, project.models
    assert str(path) in str(caught.value)
