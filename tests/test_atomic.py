"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alges_fast import atomic
from alges_fast.errors import UserError


def files(folder: Path) -> dict[str, bytes]:
    """What lies under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_written_together_all_appear_at_the_end_each_flushed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, named = set(), []
    flush, replace = os.fsync, Path.replace

    def flushing(descriptor: int) -> None:
        flushed.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    def naming(draft: Path, path: Path) -> Path:
        assert str(draft) in flushed
        named.append(path)
        return replace(draft, path)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(Path, "replace", naming)
    wanted = {f"{number % 3}/{number}.png": bytes([number]) * number for number in range(40)}
    with atomic.written_together() as write:
        for name, contents in wanted.items():
            write(tmp_path / name, contents)
        assert not wanted.keys() & files(tmp_path).keys()
    assert files(tmp_path) == wanted
    assert len(named) == 40
    assert {str(tmp_path / str(folder)) for folder in range(3)} <= flushed  # or the names would be lost


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no")], ids=["stopped", "failed"])
def test_of_files_written_together_none_is_there_where_one_failed(tmp_path: Path, error: BaseException) -> None:
    atomic.write_bytes(tmp_path / "old", b"before")

    def failing() -> None:
        with atomic.written_together() as write:
            write(tmp_path / "old", b"after")
            write(tmp_path / "new", b"after")
            raise error

    with pytest.raises(type(error)):
        failing()
    assert files(tmp_path) == {"old": b"before"}


def test_a_file_that_cannot_be_written_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    (tmp_path / "mask.png").mkdir()
    for write in (atomic.write_bytes, atomic.write_draft):
        with pytest.raises(UserError, match=r"/mask.png cannot be written \(.*\): make it writable"):
            write(tmp_path / "mask.png", b"x")


def test_a_folder_has_its_name_once_all_in_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, flush, rename = set(), os.fsync, Path.rename

    def flushing(descriptor: int) -> None:
        flushed.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        flush(descriptor)

    def renaming(draft: Path, folder: Path) -> Path:
        assert {str(path) for path in [draft, *draft.rglob("*")]} <= flushed
        return rename(draft, folder)

    for number in range(20):
        atomic.write_draft(tmp_path / "draft" / str(number % 2) / f"{number}.png", b"mask")
    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(Path, "rename", renaming)
    atomic.move_folder(tmp_path / "draft", tmp_path / "whole")
    assert set(files(tmp_path)) == {f"whole/{number % 2}/{number}.png" for number in range(20)}


@pytest.mark.parametrize("instant", [0, 1])
def test_a_folder_in_the_place_of_another_is_one_of_them_whenever_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: int
) -> None:
    rename, renamed = Path.rename, 0

    def killed(draft: Path, folder: Path) -> Path:
        nonlocal renamed
        renamed += 1
        if renamed > instant:
            raise KeyboardInterrupt
        return rename(draft, folder)

    for name in ("draft", "whole"):
        for number in range(3):
            atomic.write_draft(tmp_path / name / f"{number}.png", name.encode())
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            atomic.move_folder(tmp_path / "draft", tmp_path / "whole")
    atomic.restore_folder(tmp_path / "whole")
    assert files(tmp_path / "whole") == {f"{number}.png": b"whole" for number in range(3)}
    atomic.move_folder(tmp_path / "draft", tmp_path / "whole")
    assert files(tmp_path) == {f"whole/{number}.png": b"draft" for number in range(3)}
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
