"""Files of a project's folder, read with care: one that is damaged is named in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alges_fast.annotation.exports import csv_rows
from alges_fast.errors import UserError
from alges_fast.strategies import Candidate
from alges_fast.windows import Window


def read_picks(path: Path) -> list[tuple[Candidate, float | None]]:
    """Every pick and its predicted outline, where it has one."""
    try:
        return [
            (
                Window(row["frame"], int(row["x"]), int(row["y"]), int(row["width"]), int(row["height"]))
                if row["x"]
                else row["frame"],
                float(row["outline"]) if row.get("outline") else None,
            )
            for row in csv_rows(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: restore it from a backup") from None


def read_json(path: Path) -> Any:
    """A file of the project's own. Raises UserError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it from a backup") from None


def read_facts(path: Path, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """A mapping with these names, of these kinds, among others."""
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise UserError(f"{path} is damaged (no mapping): restore it from a backup")
    for name, kind in kinds.items():
        if name not in facts or not isinstance(facts[name], kind):
            raise UserError(f"{path} is damaged ({name} is not there, or no such thing): restore it from a backup")
    return facts


def windows_from(id: str, boxes: Any, path: Path) -> list[Window] | None:
    """Of an import's list of boxes; None for a whole frame."""
    if boxes is None:
        return None
    if not isinstance(boxes, list) or not all(
        isinstance(box, list) and len(box) == 4 and all(type(side) is int and side >= 0 for side in box)
        for box in boxes
    ):
        raise UserError(f"{path} is damaged (the windows of {id}): restore it from a backup")
    return [Window(id, *box) for box in boxes]


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The folders 000, 001, ... in a folder."""
    if not folder.is_dir():
        return []
    return sorted((int(path.name), path) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
