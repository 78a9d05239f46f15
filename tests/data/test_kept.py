"""`python -m alges_fast.data cache`: what is kept is listed, and goes when it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from alges_fast import atomic
from alges_fast.data.__main__ import main


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("folder-64-abc", "features-64-def", "features-64-fed.draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text("{}")
        (tmp_path / name / "data").write_bytes(b"x" * 2_000_000)
        (tmp_path / f"{name}.lock").touch()
    (tmp_path / "features-64-fed.draft" / "index.json").unlink()
    (tmp_path / "projection-1.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "pool-1.u8").write_bytes(b"x" * 1000)
    (tmp_path / "notes.txt").write_text("a user's own")
    (tmp_path / "mine").mkdir()
    return tmp_path


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


def test_it_is_listed_with_what_it_holds(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    for line in ("folder-64-abc", "decoded frames", "features, unfinished", "projection", "decoded pool", "0.01 GB in"):
        assert line in shown
    assert "notes.txt" not in shown
    assert "mine" not in shown
    assert len(names(cache)) == 7


def test_clearing_takes_what_is_named_or_all_and_nothing_else(cache: Path) -> None:
    assert main(["cache", "--clear", "folder-64-abc"]) == 0
    assert "folder-64-abc" not in names(cache)
    assert len(names(cache)) == 6
    assert main(["cache", "--clear"]) == 0
    assert names(cache) == {"notes.txt", "mine"}


def test_what_is_being_made_stays(cache: Path) -> None:
    with atomic.locked(cache / "features-64-fed.lock"):
        assert main(["cache", "--clear"]) == 0
    assert names(cache) == {"features-64-fed.draft", "notes.txt", "mine"}


def test_mistakes_are_one_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "--clear", "nothing"]) == 2
    assert "holds no nothing" in capsys.readouterr().err
    assert main(["cache", "folder-64-abc"]) == 2
    assert "names are for --clear" in capsys.readouterr().err
