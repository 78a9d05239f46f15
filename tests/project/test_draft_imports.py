"""Imports are made whole beside the project's labels, and then counted: several at once see each other's windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alges_fast.annotation.imports import ReturnedFrame
from alges_fast.errors import UserError
from alges_fast.project.config import ProjectConfig
from alges_fast.project.folder import ImportDraft, Project, opened
from alges_fast.project.importing import fill, take_in
from alges_fast.project.pool import list_pool
from alges_fast.windows import Window
from tests.project.annotators import contents


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    Image.new("RGB", (4, 2)).save(tmp_path / "pool" / "a.png")
    ProjectConfig(str(tmp_path / "pool"), ("one", "two")).write(tmp_path / "p")
    return tmp_path / "p"


def returned(x: int, value: int) -> ReturnedFrame:
    """The left or the right half of the frame."""
    mask = np.full((2, 4), 255, np.uint8)
    mask[:, x : x + 2] = value
    return ReturnedFrame("a.png", mask, [Window("a.png", x, 0, 2, 2)])


def take(project: Project, *returned: ReturnedFrame) -> None:
    """Each as an import of its own, all at once."""
    pool = list_pool(project)
    with project.drafting() as folder:
        drafts: list[ImportDraft] = []
        for number, frame in enumerate(returned):
            draft = ImportDraft(folder / str(number))
            fill(draft, project, pool, [frame], "ask", drafts)
            drafts.append(draft)
        take_in(project, drafts, [["x"]] * len(drafts))


def test_windows_of_one_frame_from_two_rounds_at_once(root: Path) -> None:
    with opened(root) as project:
        take(project, returned(0, 0), returned(2, 1))
        assert project.label("a.png").tolist() == [[0, 0, 1, 1]] * 2
        assert project.labelled == {"a.png": (Window("a.png", 0, 0, 2, 2), Window("a.png", 2, 0, 2, 2))}
        assert [import_.number for import_ in project.imports] == [0, 1]
        take(project, returned(0, 1))
        assert project.label("a.png").tolist() == [[1, 1, 1, 1]] * 2


def test_an_import_that_fails_late_leaves_every_byte(root: Path) -> None:
    with opened(root) as project:
        take(project, returned(0, 0))

        def frames() -> object:
            yield returned(2, 1)
            raise UserError("the second is damaged")

        before = {**contents(root), "folders": sorted(root.rglob("*"))}
        with pytest.raises(UserError, match="the second is damaged"), project.drafting() as folder:
            fill(ImportDraft(folder / "0"), project, list_pool(project), frames(), "ask")  # type: ignore[arg-type]
        assert {**contents(root), "folders": sorted(root.rglob("*"))} == before


def test_what_a_killed_import_left_goes(root: Path) -> None:
    (root / ".imports.draft" / "0" / "labels").mkdir(parents=True)
    with opened(root):
        assert not (root / ".imports.draft").exists()
