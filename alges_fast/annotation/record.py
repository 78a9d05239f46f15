"""pool.json: what a selection was begun with, so that nothing else continues it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alges_fast.annotation.config import SelectConfig
from alges_fast.annotation.lists import LabelledPool
from alges_fast.annotation.sources import LeftOut
from alges_fast.errors import UserError
from alges_fast.settings import as_settings, check_unchanged

FORMAT = 2
"""Raised when a folder cannot be continued by what is written here."""

FREE_FIELDS = frozenset({"out", "on_bad_image", "reject", "device", "batch_size"})
"""Fields of SelectConfig that may differ when a selection is continued."""

LOCK = ".lock"
"""Held under OUT from the scoring of the pool on: two processes would write into one file of scores."""

_FIELDS = {"frames": list, "labelled": list, "left_out": dict, "weights": str}


def check_folder(out: Path, config: SelectConfig) -> None:
    """Refuse a folder that is somebody else's or of another configuration."""
    if out.exists() and not (out / "config.yaml").exists():
        begun = {LOCK, ".config.yaml.draft"}  # what a process leaves that is killed at its first write
        if not out.is_dir() or any(path.name not in begun for path in out.iterdir()):
            raise UserError(f"--out {out} holds other files: choose a new folder")
    check_unchanged(out / "config.yaml", as_settings(config), FREE_FIELDS)


def read_record(out: Path) -> dict[str, Any] | None:
    """What is in pool.json; None where nothing has been scored or chosen yet.

    Raises:
        UserError: it is damaged, missing where it should be, or of another version of this package.
    """
    path = out / "pool.json"
    if not path.exists() and not (out / "scores").exists() and not (out / "picks.csv").exists():
        return None
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        if not all(isinstance(record[name], kind) for name, kind in _FIELDS.items()):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged or missing: restore it, or choose another --out") from error
    if record.get("format") != FORMAT:
        raise UserError(f"{out} was begun with another version of alges_fast: choose another --out")
    return record


def new_record(pool: LabelledPool, left_out: LeftOut, weights: str) -> dict[str, Any]:
    """What picks depend on besides config.yaml.

    Args:
        pool: every frame that was listed.
        left_out: what of it cannot be used.
        weights: the model's fingerprint, or that of the encoder which looks at the pool in its place.
    """
    return {
        "format": FORMAT,
        "frames": [frame.id for frame in pool.frames],
        "labelled": [str(item) for item in pool.without(left_out).labelled],
        "left_out": left_out.reasons,
        "weights": weights,
    }


def known_left_out(out: Path, record: Mapping[str, Any] | None, on_bad_image: str) -> LeftOut:
    """What the selection was begun without. Raises UserError where --on_bad_image stop wants nothing left out."""
    known = {} if record is None else record["left_out"]
    if known and on_bad_image == "stop":
        name, reason = next(iter(known.items()))
        raise UserError(
            f"{out} was begun without {name} ({reason}): give --on_bad_image skip to continue it, or choose another "
            "--out"
        )
    return LeftOut(on_bad_image, known)


def check_record(record: Mapping[str, Any], now: Mapping[str, Any], config: SelectConfig) -> None:
    """Refuse to go on with another pool or other weights than those that scores were made with.

    Frames that were left out when the selection was begun may be gone, or mended: they stay out.

    Raises:
        UserError: the difference.
    """
    out, left_out = config.out, now["left_out"]
    if new := [name for name in left_out if name not in record["left_out"]]:
        raise UserError(f"{left_out[new[0]]}. {out} was begun when it could be used: or choose another --out")
    if record["weights"] != now["weights"]:
        who = config.model or config.encoder
        raise UserError(f"{who} has other weights than when {out} was begun: give those, or choose another --out")
    known = LeftOut("skip", left_out)
    for what, other in (("frames", "another pool"), ("labelled", "other labelled frames")):
        before, after = ([name for name in names if not known.has(name)] for names in (record[what], now[what]))
        if before == after:
            continue
        changes = [f"{name} is new" for name in sorted(set(after) - set(before))]
        changes += [f"{name} is gone" for name in sorted(set(before) - set(after))]
        shown = ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
        raise UserError(
            f"{out} was begun with {other} ({shown or 'in another order'}): restore that, or choose another --out"
        )
