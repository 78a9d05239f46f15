"""Arrows point one way: every room of the package is in the table below, with what it may import of the rest.

docs/architecture.md draws the same house for people.
"""

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
    "cached_rows",
    "job",
    "normalisation",
    "pages",
    "prices",
    "progress",
    "settings",
}
"""They import nothing of the package but each other."""

ENGINE = BASE | {"ops", "seeding", "last_layer", "pool", "models", "strategies", "selection"}

ROOMS = {
    **dict.fromkeys(BASE, BASE),
    "command": BASE,
    "ops": BASE,
    "seeding": BASE,
    "last_layer": BASE | {"ops"},
    "pool": BASE | {"ops", "last_layer"},
    "models": BASE,
    "data": BASE,
    "strategies": BASE | {"ops", "seeding", "last_layer", "pool", "models"},
    "selection": BASE | {"ops", "seeding", "last_layer", "pool", "models", "strategies"},
    "report": BASE | {"data"},
    "training": BASE | {"models", "data"},
    "experiment": ENGINE | {"command", "data", "report", "training"},
    "annotation": ENGINE | {"command", "data"},
    "project": ENGINE | {"command", "data", "report", "annotation", "training"},
    "run": BASE | {"command", "experiment", "report"},
    "select": BASE | {"project"},
    "__init__": BASE | {"ops", "seeding", "last_layer", "pool", "selection"},
}
"""What each room may import. A room's own command, its `__main__.py`, may also import `command`."""

COMMANDS = {"run", "select"}


PARTS = sorted(path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())


def imported(room: str) -> Iterator[str]:
    """The rooms that a room's files import, wherever in the file."""
    folder = PACKAGE / room
    for path in sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]:
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
                is_command = path.name == "__main__.py" and first == "command"
                if root == "alges_fast" and first in PARTS and first != room and not is_command:
                    yield first


def test_every_room_is_in_the_table() -> None:
    assert set(PARTS) == set(ROOMS)


@pytest.mark.parametrize("room", PARTS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert set(imported(room)) <= ROOMS[room]


def test_no_two_rooms_may_import_each_other() -> None:
    above = {room: allowed - BASE for room, allowed in ROOMS.items() if room not in BASE}
    mutual = [(a, b) for a, allowed in above.items() for b in allowed if a in ROOMS[b]]
    assert mutual == []
    assert not any(COMMANDS & allowed for allowed in ROOMS.values())


def test_imports_are_seen() -> None:
    assert {"strategies", "training", "data", "report"} <= set(imported("experiment"))
