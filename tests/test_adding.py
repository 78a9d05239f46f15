"""CONTRIBUTING's recipes are true: a strategy or a layout of data is one file in its folder, and a row of a page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="needs the extra `run`")

from data.trees import folder_tree

from alges_fast.data import DATASETS
from alges_fast.strategies import strategy_names

ROOT = Path(__file__).resolve().parents[1]

LAYOUT = '''
from pathlib import Path

from alges_fast.data.files import SPLITS, Faults, FrameFile, Listing, class_ids, list_pictures, pairs
from alges_fast.data.layouts import Layout, register_layout


@register_layout
class Flat(Layout):
    """All pictures of a split in one folder."""

    name = "flat"
    holds = ("{train,validation,test}/{pictures,labels}/<stem>.png",)
    sign = "*/labels/"

    def listing(self, root: Path, split: str, ignore_index: int | None, faults: Faults) -> Listing:
        splits = {}
        for part in SPLITS:
            images, masks = (list_pictures(root / part / name, faults) for name in ("pictures", "labels"))
            splits[part] = tuple(
                FrameFile(f"{part}/{stem}", part, part, image, mask)
                for stem, image, mask in pairs(images, masks, lambda stem: stem, faults)
            )
        names = ("sky", "liver", "road", "tool")
        return Listing("flat", root, names, None, splits, class_ids(11, 4), "flat")
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, of links, that takes one more file in the two folders."""
    for path in (ROOT / "alges_fast").rglob("*"):
        link = tmp_path / path.relative_to(ROOT)
        if path.is_dir():
            link.mkdir(parents=True, exist_ok=True)
        elif path.suffix != ".pyc":
            link.symlink_to(path)
    example = (ROOT / "examples" / "strategy.py").read_text().partition('\n\nif __name__ == "__main__"')[0]
    example = example.replace("from alges_fast import select\n", "")
    example = example.replace("\n\nclass Unsure", "\n\n@register_strategy\nclass Unsure")
    example = example.replace("Strategy, by_score", "Strategy, by_score, register_strategy")
    (tmp_path / "alges_fast/strategies/unsure.py").write_text(example)
    (tmp_path / "alges_fast/data/layouts/flat.py").write_text(LAYOUT)
    return tmp_path


COMMANDS = """
from alges_fast import run
from alges_fast.data.__main__ import main as look

assert run.main(["--help", "all"]) == look(["check", "--help"]) == look(["check", "mine"]) == 0
small = ["--image_size", "32", "--architecture", "frozen", "--head_steps", "5", "--rounds", "2", "--query_size", "1"]
small += ["--init_size", "2", "--strategies", "unsure", "--out", "out"]
assert run.main(["--dataset", "flat", "--data_root", "mine", *small]) == 0
"""


def test_one_file_makes_a_layout_and_one_a_strategy_that_commands_know_and_use(package: Path) -> None:
    root = folder_tree(package / "mine")
    for part in root.iterdir():
        (part / "images").rename(part / "pictures")
        (part / "masks").rename(part / "labels")
    (root / "val").rename(root / "validation")
    environment = {**os.environ, "PYTHONPATH": str(package), "ALGES_FAST_CACHE": str(package / "cache")}
    command = [sys.executable, "-P", "-c", COMMANDS]
    done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Known: [^.]*\bunsure\b", " ".join(done.stdout.split()))
    assert re.search(r"flat +{train,validation,test}/{pictures,labels}/<stem>.png", done.stdout)
    assert "flat (by its folders" in done.stdout
    assert (package / "out" / "results.csv").read_text().count("\nunsure,") == 2


@pytest.mark.parametrize(("page", "names"), [("strategies.md", strategy_names()), ("data.md", DATASETS)])
def test_each_has_its_row(page: str, names: tuple[str, ...]) -> None:
    rows = [line for line in (ROOT / "docs" / page).read_text().splitlines() if re.match(r"\| `[^-]", line)]
    assert {name for row in rows for name in re.findall(r"`([^`]*)`", row.split("|")[1])} == set(names)
