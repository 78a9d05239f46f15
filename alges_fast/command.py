"""What the two commands share: arguments as people type them, and folders that belong to one configuration."""

from __future__ import annotations

import ctypes
import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from alges_fast.errors import UserError

__all__ = ["bracketed", "check_unchanged", "keep_freed_memory", "one_line", "plain", "refused"]


def bracketed(argv: Sequence[str], lists: Collection[str]) -> list[str]:
    """`--seeds 0,1` as `--seeds=[0,1]`, which is how YAML writes a list, for the flags in `lists`."""
    arguments: list[str] = []
    rest = iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in lists:
            value = value if equals else next(rest, "")
            argument = f"{flag}={value if value.startswith('[') else f'[{value}]'}"
        arguments.append(argument)
    return arguments


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next layer instead of returning it to the system and faulting it in again.

    Measured: a training step of U-Net with ResNet-18 on two cores takes 0.84 of its time at 224 pixels and 0.92 at 64,
    with the same peak of memory. It changes the whole process, so it is for commands only; `embed_pool`, which runs in
    a user's process, has a milder way of its own. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: blocks up to 32 MiB, the most that any glibc accepts
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap's end is not given back


def one_line(message: str) -> str:
    """A message of any library as part of a sentence."""
    return " ".join(message.split()).rstrip(".")


def refused(error: Exception, config_class: type) -> UserError:
    """What a parser said of the flags of a configuration (a dataclass), with the nearest flag to an unknown one."""
    message = one_line(str(error))
    unknown = re.search(r"unrecognized arguments: --(\w+)", message)
    names = [field.name for field in fields(config_class)]
    nearest = difflib.get_close_matches(unknown[1], names, n=1) if unknown else []
    return UserError(f"{message}{f' (nearest: --{nearest[0]})' if nearest else ''}. See --help")


def plain(config: Any) -> dict[str, Any]:
    """A configuration (a dataclass) as YAML holds it."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def check_unchanged(path: Path, now: Mapping[str, Any], free: Collection[str]) -> None:
    """Refuse to continue a folder that was begun with another configuration, as its config.yaml, `path`, says.

    Values named in `free` may differ.

    Raises:
        UserError: a damaged file, or the differences.
    """
    if not path.exists():
        return
    try:
        before = dict(yaml.safe_load(path.read_text()))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: restore it, or choose another --out") from error
    differences = [
        f"{name} was {before.get(name)} and is now {now.get(name)}"
        for name in [*now, *(name for name in before if name not in now)]
        if name not in free and before.get(name) != now.get(name)
    ]
    if differences:
        raise UserError(
            f"{path.parent} holds a run of another configuration ({'; '.join(differences)}): choose another --out, or "
            "the old configuration to continue it"
        )
