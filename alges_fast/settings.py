"""From a dataclass to a command's settings: flags, help, YAML files and completion, in one way for every command.

A field is a flag of the same name and a key of the file that `--config` names. Its help is its entry under `Args:` in
the class's docstring; the first sentence alone stands on the first screen, for fields made by `setting(first=True)`. A
field that is a dataclass lends its own fields, so that a configuration may be made of parts and flags stay flat.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import yaml

from alges_fast.errors import UserError, nearest, one_line

COLUMNS, TEXT_AT = 79, 24  # of a screen, and where what flags mean begins on it
FEW = 40  # lines: a help that is no longer is shown whole
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
_VALUES = {int: "N", float: "X", bool: "true|false", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Command:
    """A command, or one of the steps of a `Family`.

    Attributes:
        name: what is typed, such as `python -m alges_fast.run`; of a step its own word alone.
        config: a dataclass, its settings.
        body: what it does with one; the exit code.
        about: what it does, in a sentence or three.
        example: what is typed for it; of a step without the family's words.
        more: pages that say more.
        notes: what else its help says, after all settings.
        defaults: of settings, where they depend on those that are given: name -> value to name -> value.
        gone: flags that there were, without dashes -> what to give in their place.
        if_out_of_memory: what the user can do where there is too little memory.
    """

    name: str
    config: type
    body: Callable[[Any], int]
    about: str
    example: str
    more: str = ""
    notes: str = ""
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=lambda given: {})
    gone: Mapping[str, str] = field(default_factory=dict)
    if_out_of_memory: str = "run it on smaller images"


@dataclass(frozen=True)
class Family:
    """A command of several steps, of which one is named first. Attributes as those of a `Command`."""

    name: str
    steps: Sequence[Command]
    about: str
    example: str
    more: str
    if_out_of_memory: str = "run it on smaller images"

    def step(self, given: Sequence[str]) -> Command:
        """The step that is named. Raises UserError where none is."""
        names = [step.name for step in self.steps]
        word = given[0] if given else ""
        if word not in names:
            what = f"{word}: no step of {self.name}" if word else "no step is named"
            raise UserError(f"{what}: give {_listed(names)}{nearest(word, names, n=1)}. See --help")
        return self.steps[names.index(word)]


def setting(
    default: Any = MISSING,
    value: str = "",
    *,
    first: bool = False,
    positional: bool = False,
    among: Callable[[], Iterable[str]] | None = None,
) -> Any:
    """A field of a configuration that has more to say than its default.

    Args:
        default: left out where the setting has to be given.
        value: what stands for its value in the help, such as `DIR`; by default its type's letter.
        first: whether it is on the first screen of the help.
        positional: whether it is given by its place instead of by a flag.
        among: the names that it is one of, or a list of; help lists them and completion offers them. Whether a name is
            known is for the configuration to check.
    """
    return field(default=default, metadata={"value": value, "first": first, "positional": positional, "among": among})


def read(command: Command | Family, given: Sequence[str]) -> Any:
    """The configuration of a command, or of a step, from flags, over the files of `--config`, over its defaults.

    With `--print_config` it is printed as such a file instead, and the program ends.

    Raises:
        UserError: a flag, key or value that does not exist, or a needed one left out; one line.
    """
    if isinstance(command, Family):
        return read(command.step(given), given[1:])
    known = {each.name: each for each in _settings(command.config)}
    typed, unknown = _typed(given, known)
    if unknown:
        flag = unknown[0].partition("=")[0]
        if instead := command.gone.get(flag.strip("-")):
            raise UserError(f"{flag} is no flag any more: {instead}. See --help")
        near = nearest(flag, [f"--{name}" for name in known], n=1)
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}{near}. See --help")
    values = {**command.defaults(typed), **typed}
    for name, each in known.items():
        if each.needed and values.get(name) in (None, ()):
            raise UserError(f"{each.title} is missing: give it. See --help")
    config = _made(command.config, values)
    if "--print_config" in given:
        print(yaml.safe_dump(as_settings(config), sort_keys=False, allow_unicode=True), end="")
        sys.exit(0)
    return config


def as_settings(config: Any) -> dict[str, Any]:
    """A configuration as the keys and values of a YAML file."""
    values: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            values |= as_settings(value)
        else:
            values[each.name] = (
                [*value] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
            )
    return values


def from_settings(config_class: type, values: Mapping[str, Any]) -> Any:
    """A configuration from the keys and values of a YAML file. Raises UserError for one that is none."""
    known = {each.name: each for each in _settings(config_class)}
    if strange := [name for name in values if name not in known]:
        raise UserError(f"{strange[0]} is no setting")
    return _made(config_class, {name: known[name].read(_text(value)) for name, value in values.items()})


def help_asked(command: Command | Family, given: Sequence[str]) -> str | None:
    """What `--help` says: all settings with `--help all` or where they are few, else a screen of what matters. None
    where it is not asked for."""
    asked = next((position for position, word in enumerate(given) if word in ("-h", "--help")), None)
    if asked is None:
        return None
    family = command.name if isinstance(command, Family) else ""
    if isinstance(command, Family):
        if asked == 0:
            return _screen_of_steps(command)
        command = replace(command.step(given), more=command.more)
    everything = _screen(command, family, everything=True)
    is_wanted = given[asked + 1 : asked + 2] == ["all"] or len(everything.splitlines()) <= FEW
    return everything if is_wanted else _screen(command, family, everything=False)


def complete(command: Command | Family) -> None:
    """Answer a shell that asks for completions, where argcomplete is installed."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    parser = argparse.ArgumentParser(prog=command.name)
    if isinstance(command, Command):
        _add_settings(parser, command.config)
    else:
        steps = parser.add_subparsers()
        for step in command.steps:
            _add_settings(steps.add_parser(step.name), step.config)
    argcomplete.autocomplete(parser)


def _add_settings(parser: argparse.ArgumentParser, config_class: type) -> None:
    for each in _settings(config_class):
        nargs = "*" if each.positional and each.element else "?" if each.positional or each.kind is bool else None
        action = parser.add_argument(*([each.name] if each.positional else each.flags), nargs=nargs)
        names = tuple(each.among()) if each.among else typing.get_args(each.kind) if each.element is None else ()
        if names:
            action.completer = lambda names=names, **_: names  # type: ignore[attr-defined]
    for flag, _ in _OF_ALL:
        parser.add_argument(flag.split()[0])


@dataclass(frozen=True)
class _Setting:
    """A field of a configuration: its type without None, whether it may be None, and what is said of it."""

    name: str
    kind: Any
    optional: bool
    default: Any
    doc: str
    value: str = ""
    first: bool = False
    positional: bool = False
    among: Callable[[], Iterable[str]] | None = None

    @property
    def needed(self) -> bool:
        return self.default is MISSING

    def opens(self) -> bool:
        """Whether a step's line on the first screen has it."""
        return self.first and (self.positional or self.needed)

    @property
    def element(self) -> Any:
        """The type of a list's elements; None where this is no list."""
        return typing.get_args(self.kind)[0] if typing.get_origin(self.kind) is tuple else None

    @property
    def title(self) -> str:
        """As it is typed."""
        return self.value if self.positional else f"--{self.name}"

    @property
    def flags(self) -> list[str]:
        return [f"-{self.name}", f"--{self.name}"] if len(self.name) == 1 else [f"--{self.name}"]

    @property
    def stand_in(self) -> str:
        """What stands for its value in help."""
        if self.value:
            return self.value
        letter = _VALUES.get(self.element or self.kind) or "|".join(typing.get_args(self.kind))
        return f"{letter},{letter}" if self.element else letter

    def read(self, text: str) -> Any:
        """The value that people, and files, write so. Raises UserError where it is none."""
        if self.optional and text == "null":
            return None
        if self.element is None:
            return self.read_one(text)
        inside = text.strip()
        inside = inside[1:-1] if inside.startswith("[") and inside.endswith("]") else inside
        return tuple(self.read_one(part.strip()) for part in inside.split(",")) if inside else ()

    def read_one(self, text: str) -> Any:
        """The same of one element of a list."""
        kind = self.element or self.kind
        try:
            if kind in (str, Path):
                return kind(_expanded(text, self.title))
            if kind in (int, float):
                return kind(text)
            return {_text(value): value for value in ((True, False) if kind is bool else typing.get_args(kind))}[text]
        except (KeyError, ValueError):
            raise UserError(f"{self.title} {text}: give {self._expected()}. See --help") from None

    def _expected(self) -> str:
        if typing.get_origin(self.kind) is Literal:
            return f"one of {', '.join(typing.get_args(self.kind))}"
        if self.element is not None:
            return "whole numbers with commas between, such as 0,1,2" if self.element is int else "names with commas"
        return _KINDS[self.kind]

    def full_help(self) -> str:
        names = f" Known: {', '.join(self.among())}." if self.among else ""
        is_plain = self.default in (MISSING, None, "", ()) or self.default is False
        return f"{self.doc}{names}" if is_plain else f"{self.doc}{names} (default: {_text(self.default)})"

    def first_sentence(self) -> str:
        said = re.split(r"[.;](?: |$)", self.doc)[0]
        named = f"{said}: {', '.join(self.among())}" if self.among else said
        return named if len(named) <= COLUMNS - TEXT_AT else said


def _settings(config_class: type) -> Iterator[_Setting]:
    """The settings of a configuration, those of its parts among them."""
    hints, docs = typing.get_type_hints(config_class), _docs(config_class)
    own = vars(config_class).get("__annotations__", {})
    for each in sorted(
        fields(config_class), key=lambda each: not (each.name in own or each.metadata.get("positional"))
    ):
        kind = hints[each.name]
        if is_dataclass(kind):
            yield from _settings(typing.cast(type, kind))
            continue
        options = [option for option in typing.get_args(kind) if option is not NoneType]
        optional = NoneType in typing.get_args(kind)
        of_field = {name: value for name, value in each.metadata.items() if name in _Setting.__dataclass_fields__}
        default = each.default if each.default_factory is MISSING else each.default_factory()
        yield _Setting(
            each.name, options[0] if optional else kind, optional, default, docs.get(each.name, ""), **of_field
        )


def _docs(config_class: type) -> dict[str, str]:
    """What the `Args:` of a class's docstring, and of its bases', say of each."""
    docs: dict[str, str] = {}
    for base in reversed(config_class.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")[2]
        text = re.split(r"^(?=\S)", text, maxsplit=1, flags=re.MULTILINE)[0]  # another section may follow
        for entry in re.split(r"^ {4}(?=\w)", text, flags=re.MULTILINE):
            names, _, said = entry.partition(":")
            docs |= {name.strip(): " ".join(said.split()) for name in names.split(",")}
    return docs


def _made(config_class: type, values: Mapping[str, Any]) -> Any:
    """A configuration of flat values, its parts made of theirs."""
    hints, own = typing.get_type_hints(config_class), {}
    for each in fields(config_class):
        if is_dataclass(hints[each.name]):
            own[each.name] = _made(hints[each.name], values)
        elif each.name in values:
            own[each.name] = values[each.name]
    return config_class(**own)


def _typed(given: Sequence[str], known: Mapping[str, _Setting]) -> tuple[dict[str, Any], list[str]]:
    """The values that were given, those of every `--config` below those of flags and places; and what is no setting.

    The word after a flag is its value, even where that begins with a dash; one for true or false may stand alone.
    """
    of_files: dict[str, Any] = {}
    typed: dict[str, Any] = {}
    unknown: list[str] = []
    places: list[str] = []
    words = [*given]
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        each = known.get(flag.lstrip("-")) if flag.startswith("-") else None
        if flag != "--config" and (each is None or each.positional):
            if flag != "--print_config":
                (unknown if flag.startswith("-") else places).append(word)
            continue
        if not equals and each is not None and each.kind is bool and words[:1] not in (["true"], ["false"]):
            value = "true"
        elif not equals:
            value = words.pop(0) if words else ""
        if each is None:
            of_files |= {name: known[name].read(_text(of)) for name, of in _settings_in(value, known).items()}
        else:
            typed[each.name] = each.read(value)
    for each in (each for each in known.values() if each.positional):
        taken, places = (places, []) if each.element else (places[:1], places[1:])
        if taken:
            typed[each.name] = tuple(map(each.read_one, taken)) if each.element else each.read(taken[0])
    return {**of_files, **typed}, unknown + places


def _settings_in(given: str, known: Mapping[str, _Setting]) -> dict[str, Any]:
    """The settings of a YAML file."""
    if not given:
        raise UserError("--config is empty: give a YAML file")
    path = Path(_expanded(given, "--config"))
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not a YAML file: {one_line(error)}") from error
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise UserError(f"--config {path}: holds no settings: give lines like 'epochs: 8'. See --help")
    for name in settings:
        if name not in known:
            raise UserError(f"--config {path}: {name} is no setting{nearest(str(name), known, n=1)}. See --help")
    return settings


def _text(value: Any) -> str:
    """A value of a file as it is written behind a flag."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return str(value) if isinstance(value, (str, Path, float)) else json.dumps(value, default=str)


def _expanded(path: str, flag: str) -> str:
    """With a home folder for `~` or `~user`, which the shell leaves alone in quotes, after `=` and in a file."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        raise UserError(f"{flag} {path}: no such home folder: write the path out, or ./{path} for that name") from None


_OF_ALL = (
    ("--config FILE", "YAML file with any of these settings; flags override it"),
    ("--print_config", "show the settings as such a file, and do nothing else"),
)
"""Flags of every command."""


def _screen(command: Command, family: str, *, everything: bool) -> str:
    """Usage, what it is, an example, and its settings: those that matter, on a screen, and where to read on; or all."""
    settings = [*_settings(command.config)]
    rows = [(_usage(each), each.first_sentence()) for each in settings if each.first]
    end = f"All settings: --help all. More: {command.more}"
    if everything:
        rows, end = [*((_usage(each, all_flags=True), each.full_help()) for each in settings), *_OF_ALL], command.notes
    return _page(_usage_of(command, family), command.about, rows, f"{family} {command.example}".strip(), end)


def _screen_of_steps(family: Family) -> str:
    rows = [
        (" ".join([step.name, *map(_usage, filter(_Setting.opens, _settings(step.config)))]), step.about)
        for step in family.steps
    ]
    usage = f"{family.name} STEP [--SETTING VALUE ...]"
    return _page(usage, family.about, rows, family.example, f"All settings: STEP --help. More: {family.more}")


def _page(usage: str, about: str, rows: Sequence[tuple[str, str]], example: str, end: str) -> str:
    lines = [f"usage: {usage}", "", *textwrap.wrap(_sentence(about), COLUMNS), ""]
    for left, right in rows:
        wrapped = textwrap.wrap(right, COLUMNS - TEXT_AT, break_on_hyphens=False) or [""]
        if len(left) > TEXT_AT - 4:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left}".ljust(TEXT_AT) + wrapped[0])
        lines += [" " * TEXT_AT + line for line in wrapped[1:]]
    return "\n".join([*lines, "", "example:", textwrap.indent(example, "  "), *(["", end] if end else []), ""])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _usage_of(command: Command, family: str = "") -> str:
    needed = [_usage(each) for each in _settings(command.config) if each.needed or each.positional]
    return " ".join([family, command.name, *needed, "[--SETTING VALUE ...]"]).strip()


def _usage(each: _Setting, *, all_flags: bool = False) -> str:
    if each.positional:
        return each.stand_in
    flags = ", ".join(each.flags) if all_flags else each.flags[0]
    return flags if each.kind is bool else f"{flags} {each.stand_in}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
