"""Strategies by name: those that come with the package, and a user's own by where their class is."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from alges_fast.errors import UserError, nearest
from alges_fast.strategies.base import Strategy

S = TypeVar("S", bound=type[Strategy])
_registry: dict[str, type[Strategy]] = {}


def register_strategy(cls: S) -> S:
    """Class decorator: makes a strategy known by its name."""
    _check_class(cls, cls.__qualname__)
    if cls.name in _registry:
        raise ValueError(f"strategy {cls.name!r} is registered twice: by {_registry[cls.name]} and {cls}")
    _registry[cls.name] = cls
    return cls


def strategy_names() -> tuple[str, ...]:
    """Names of the strategies that come with the package, in order of registration."""
    return tuple(_registry)


def get_strategy(name: str) -> type[Strategy]:
    """The strategy of this name, or the class at "package.module:Class" or "path/to/file.py:Class".

    Raises:
        UserError: there is none.
    """
    if name in _registry:
        return _registry[name]
    if ":" not in name:
        near = nearest(name, _registry, cutoff=0.4)
        raise UserError(f"strategy {name!r} is unknown{near}. Use {', '.join(_registry)}, or path/to/file.py:Class")
    where, _, attribute = name.rpartition(":")
    found = getattr(_import(where, name), attribute, None)
    if found is None:
        raise UserError(f"strategy {name!r}: {where} has no {attribute}")
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UserError(f"strategy {name!r}: {attribute} is not a subclass of alges_fast.strategies.Strategy")
    try:
        _check_class(found, attribute)
    except TypeError as error:
        raise UserError(f"strategy {name!r}: {error}") from error
    if found.name in _registry and _registry[found.name] is not found:
        raise UserError(f"strategy {name!r}: its name {found.name!r} is taken; give the class another")
    return found


def _import(where: str, name: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where).expanduser()
        if not path.is_file():
            raise UserError(f"strategy {name!r}: no file {where}")
        spec = importlib.util.spec_from_file_location(f"_alges_fast_strategy_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and pickling look a class's module up by name
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"strategy {name!r}: {where} does not import ({type(error).__name__}: {error})") from error


def _check_class(cls: type[Strategy], where: str) -> None:
    for attribute in ("name", "reference"):
        if not isinstance(getattr(cls, attribute, None), str):
            raise TypeError(f"{where} needs a class attribute {attribute}: str")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cls.name):
        raise TypeError(f"{where}.name is {cls.name!r}; it names a folder, so letters, digits, '.', '_' and '-' only")
