"""What a query strategy is given, what it returns, and the registry that names are looked up in."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import ClassVar, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.random_streams import stream_seed

Pool = Sequence[tuple[str, Tensor]]
"""(id, image (3, S, S) float32) pairs."""


@dataclass(frozen=True)
class Query:
    """Which n of the unlabelled frames to annotate next?

    Attributes:
        model: trained on the labelled frames, in eval mode, on `device`.
        unlabelled, labelled: the pool as (id, image (3, S, S) float32) pairs; an item is decoded when it is indexed.
        videos: id -> video, for labelled and unlabelled frames; may be empty.
        n: how many ids are wanted, at most len(unlabelled).
        seed, round: of the experiment; `stream_seed(purpose, seed, round)` makes a generator's seed from them.
        batch_size: images the model is run on at a time.
        device: where the model is.
        precision: of the model's forward pass: None for its own type, or "bf16-mixed", "16-mixed" and the like.
        group: the processes that make this call together, each with the same query, or None for one.
    """

    model: nn.Module
    unlabelled: Pool
    labelled: Pool
    n: int
    videos: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    round: int = 0
    batch_size: int = 16
    device: torch.device | str = "cpu"
    precision: str | None = None
    group: dist.ProcessGroup | None = None

    def stream_seed(self, purpose: str) -> int:
        """A generator's seed for this purpose, fixed by (seed, round)."""
        return stream_seed(purpose, self.seed, self.round)

    def unlabelled_ids(self) -> list[str]:
        """The ids of `unlabelled`, without decoding an image where the pool offers `ids`."""
        ids = getattr(self.unlabelled, "ids", None)
        return list(ids) if ids is not None else [name for name, _ in self.unlabelled]


@dataclass(frozen=True)
class Picks:
    """A strategy's answer.

    Attributes:
        ids: n ids in order of picking; the same on every process of the query's group.
        scores: score per unlabelled id where the strategy scores frames one by one (the highest are picked), else {}.
        embed_seconds: time to run the model over the pool.
        seeding_seconds: time to choose from what that gave.
    """

    ids: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    embed_seconds: float = 0.0
    seeding_seconds: float = 0.0


class Strategy(ABC):
    """A way to choose frames. A subclass names itself and its paper, and answers queries.

    To use one of your own, write a class like this in any file and name it on the command line by
    `package.module:Class` or `path/to/file.py:Class`:

        class Darkest(Strategy):
            name = "darkest"
            reference = "this docstring"

            def query(self, query):
                scores = {name: -float(image.mean()) for name, image in query.unlabelled}
                return Picks(tuple(sorted(scores, key=scores.get, reverse=True)[: query.n]), scores)
    """

    name: ClassVar[str]
    reference: ClassVar[str]

    @abstractmethod
    def query(self, query: Query) -> Picks:
        """Choose `query.n` of `query.unlabelled`. The same query must get the same answer."""

    def prepare_model(self, model: nn.Module, n_classes: int, seed: int) -> nn.Module:
        """The network this strategy trains, made from the one that the others train; seed fixes what is added.

        In eval mode it must map images to logits (B, n_classes, S, S).
        """
        return model

    def loss(self, model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        """The loss this strategy trains its model with, which is in train mode; here cross-entropy.

        images: (B, 3, S, S) float32. masks: (B, S, S) int64, UNLABELLED where a pixel is not labelled.
        """
        return cross_entropy(model(images), masks)


def cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, over the labelled pixels of a batch; 0 where there is none.

    logits: (B, K, S, S). masks: (B, S, S) int64, UNLABELLED where a pixel is not labelled.
    """
    total = F.cross_entropy(logits, masks, ignore_index=UNLABELLED, reduction="sum")
    return total / (masks != UNLABELLED).sum().clamp(min=1)


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
        near = difflib.get_close_matches(name, _registry, n=3, cutoff=0.4)
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise UserError(f"strategy {name!r} is unknown{nearest}. Use {', '.join(_registry)}, or path/to/file.py:Class")
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
        path = Path(where)
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
