"""What the commands share: one way to fail, arguments as people type them, folders that belong to one configuration.

A setting may come as a flag or as a key of a YAML file. `arguments_of` makes flags of the file's keys, so that both are
read, and refused, in one way; `expand_home` then reads `~` in any of them, which the shell leaves alone in quotes,
after `=` and in a file.
"""

from __future__ import annotations

import argparse
import ctypes
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import yaml

from alges_fast import settings
from alges_fast.errors import UserError
from alges_fast.job import LostProcess, is_first_to_fail, leads_job
from alges_fast.settings import Command, Family, as_settings, help_asked, read

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "arguments_of",
    "as_settings",
    "complete",
    "expand_home",
    "help_shown",
    "keep_freed_memory",
    "main",
    "one_line",
    "refused",
    "run_command",
]

Config = TypeVar("Config", bound="DataclassInstance")

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def main(command: Command | Family, argv: Sequence[str] | None = None) -> int:
    """Answer --help and completion, or read a command's settings and do it; the exit code of `run_command`.

    Args:
        argv: what was typed after its name; by default of this process.
    """
    given = [*(sys.argv[1:] if argv is None else argv)]
    settings.complete(command)
    steps = {step.name: step for step in command.steps} if isinstance(command, Family) else {}
    chosen = steps.get(given[0]) if given else None

    def body() -> int:
        if (text := help_asked(command, given)) is not None:
            print(text, end="")
            return 0
        if isinstance(command, Command):
            return command.body(read(command, given))
        step = command.step(given)
        return step.body(read(step, given[1:]))

    doing = command if isinstance(command, Command) else chosen
    return run_command(body, **({"if_out_of_memory": doing.if_out_of_memory} if doing else {}))


def run_command(body: Callable[[], int], *, if_out_of_memory: str = "run it on smaller images") -> int:
    """The exit code of a command: its body's, 2 for a user's mistake, 130 where it is interrupted, 1 where another
    process of its job has gone.

    What is the user's to mend is one line on stderr, without a traceback, of one process of a job; what is not is
    raised.

    Args:
        body: what the command does; its exit code.
        if_out_of_memory: what the user can do where there is too little memory.
    """
    code = 2
    try:
        return body()
    except LostProcess as error:
        code, said = 1, str(error)
    except UserError as error:
        said = str(error)
    except OSError as error:  # a disk that fills, or a folder that goes away
        said = f"{error}: make it readable, or writable if it is to be written, then run again"
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        said = f"out of memory: {if_out_of_memory}"
    except MemoryError:
        said = f"out of memory: {if_out_of_memory}"
    except KeyboardInterrupt:
        if leads_job():
            print("\nstopped; the same command continues", file=sys.stderr)
        return 130
    if is_first_to_fail():
        print(f"error: {said}", file=sys.stderr)
    return code


def arguments_of(argv: Sequence[str], config_class: type) -> list[str]:
    """The flags to parse: the settings of every `--config FILE` first, as flags, then those that were given as flags.

    A list is written as its elements with commas between, in a file as on the command line; where the field of
    `config_class` (a dataclass) is a tuple it becomes `--seeds=[0,1]`, which is how the parser reads a list.

    Raises:
        UserError: a file that cannot be read, is no mapping, or has a key that is no setting.
    """
    lists = {f"--{field.name}" for field in fields(config_class) if str(field.type).startswith("tuple[")}
    of_files: list[str] = []
    arguments: list[str] = []
    rest = iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag == "--config":
            path = value if equals else next(rest, "")
            of_files += [_flag(name, setting) for name, setting in _settings_of(path, config_class).items()]
        elif flag in lists and not equals:
            arguments.append(f"{flag}={next(rest, '')}")
        else:
            arguments.append(argument)
    return [
        _bracketed(argument) if argument.partition("=")[0] in lists else argument for argument in of_files + arguments
    ]


def help_shown(argv: Sequence[str], screen: str, parser: Callable[[], argparse.ArgumentParser]) -> bool:
    """Answer --help with a screen of what matters, and `--help all` with all that the parser says; whether asked."""
    asked = next((position for position, argument in enumerate(argv) if argument in ("-h", "--help")), None)
    if asked is None:
        return False
    if list(argv[asked + 1 : asked + 2]) == ["all"]:
        parser().print_help()
    else:
        print(screen, end="")
    return True


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions, where argcomplete is installed. jsonargparse does it by itself."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


def expand_home(config: Config) -> Config:
    """The configuration (a dataclass) with a home folder for every `~` or `~user` that a value begins with.

    Raises:
        UserError: there is no such home folder.
    """

    def expanded(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(expanded(name, part) for part in value)
        return _expanded(value, f"--{name}") if isinstance(value, str) else value

    values = {field.name: expanded(field.name, getattr(config, field.name)) for field in fields(config)}
    return replace(config, **values)


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


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether torch has found no room for a tensor, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def refused(error: Exception, config_class: type) -> UserError:
    """What a parser said of the flags of a configuration (a dataclass): the nearest flag to an unknown one, and what to
    give in place of a value that is none."""
    message = one_line(str(error))
    types = {field.name: str(field.type) for field in fields(config_class)}
    value = re.search(r'^Parser key "(\w+)": .*\b(?:Got|Given) value: (.*)$', message)
    if value is not None and value[1] in types:
        return UserError(f"--{value[1]} {value[2]}: give {_expected(types[value[1]])}. See --help")
    unknown = re.search(r"unrecognized arguments: --(\w+)", message)
    return UserError(f"{message}{_nearest(unknown[1], types) if unknown else ''}. See --help")


def _settings_of(given: str, config_class: type) -> dict[str, Any]:
    """The settings of a YAML file."""
    if not given:
        raise UserError("--config is empty: give a YAML file")
    path = Path(_expanded(given, "--config"))
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not a YAML file: {one_line(str(error))}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise UserError(f"--config {path}: holds no settings: give lines like 'epochs: 8'. See --help")
    names = [field.name for field in fields(config_class)]
    for name in settings:
        if name not in names:
            raise UserError(f"--config {path}: {name} is no setting{_nearest(str(name), names)}. See --help")
    return settings


def _flag(name: str, value: Any) -> str:
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return f"--{name}={value if isinstance(value, str) else json.dumps(value, default=str)}"


def _bracketed(argument: str) -> str:
    flag, _, value = argument.partition("=")
    return f"{flag}={value if value.startswith('[') else f'[{value}]'}"


def _expanded(path: str, flag: str) -> str:
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise UserError(f"{flag} {path}: no such home folder: write the path out, or ./{path} for that name") from None


def _nearest(name: str, names: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f" (nearest: --{nearest[0]})" if nearest else ""


def _expected(kind: str) -> str:
    """What a field of this type takes, for people."""
    if found := re.match(r"Literal\[(.*?)\]", kind):
        return "one of " + found[1].replace('"', "").replace("'", "")
    if found := re.match(r"tuple\[(\w+), \.\.\.\]", kind):
        return "whole numbers with commas between, such as 0,1,2" if found[1] == "int" else "names with commas between"
    return _KINDS[kind.partition(" ")[0]]
