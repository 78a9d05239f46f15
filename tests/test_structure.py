"""Arrows point one way: what each part of the package imports of the rest, as DESIGN.md section 5 draws it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "alges_fast"

BASE = {
    "errors",
    "labels",
    "_native",
    "random_streams",
    "atomic",
    "backends",
    "windows",
    "losses",
    "cache_folder",
    "normalisation",
}
"""They import nothing of the package but each other."""

ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "ops": BASE,
    "seeding": BASE,
    "last_layer": BASE | {"ops"},
    "pool": BASE | {"ops", "last_layer"},
    "models": BASE,
    "data": BASE,
    "strategies": BASE | {"ops", "seeding", "last_layer", "pool", "models"},
    "selection": BASE | {"ops", "seeding", "last_layer", "pool", "models", "strategies"},
}
"""What a part may import; those above (experiment, annotation and the commands) may import any of these."""

COMMANDS = {"run", "select"}


PARTS = sorted(path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())


def imported(part: str) -> Iterator[str]:
    """The parts of the package that a part's files import, wherever in the file, by their first name."""
    folder = PACKAGE / part
    for path in folder.rglob("*.py") if folder.is_dir() else [PACKAGE / f"{part}.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                root, _, rest = name.partition(".")
                first = rest.partition(".")[0]
                if root == "alges_fast" and first in PARTS and first != part:
                    yield first


@pytest.mark.parametrize("part", ALLOWED)
def test_lower_parts_import_nothing_above_them(part: str) -> None:
    assert part in PARTS
    assert set(imported(part)) <= ALLOWED[part]


@pytest.mark.parametrize("part", PARTS)
def test_nothing_imports_a_command(part: str) -> None:
    assert COMMANDS.isdisjoint(imported(part))


def test_imports_are_seen() -> None:
    assert {"strategies", "models", "data", "report"} <= set(imported("experiment"))
