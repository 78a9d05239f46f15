"""What a query strategy is given, and what it answers: `Query`, `Rating`, `Strategy`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alges_fast.losses import labelled_cross_entropy
from alges_fast.pool import Id, Pool, Progress
from alges_fast.random_streams import stream_seed
from alges_fast.windows import GridWindows, Window, frame_of

Candidate: TypeAlias = Id | Window
"""What is picked: a frame by its id, or a window of one, in pixels of the image as the annotator has it."""


@dataclass(frozen=True)
class Query:
    """Which of these candidates should be annotated next?

    Attributes:
        candidates: what may be drawn, in pool order: frames, or windows of a grid where `regions` is set.
        pool: (id, image (C, H, W)) pairs with an attribute `ids`, of every frame that has a candidate or a label; an
            item is decoded when it is indexed. The image is what `model` takes: pixels, or a frozen encoder's map.
        model: trained, in eval mode, on `device`; None before anything is labelled.
        labelled: frames or windows that are annotated already, whether they are among the candidates or not.
        centres: those of them that a seeding by k-means++ starts from; none is a candidate.
        in_norms: those of them that count in the mean norms of classes' rows, beside the candidates.
        regions: rows and columns of the grid that every frame is cut into; None where candidates are whole frames.
        sizes: id -> (height, width) that windows are given in; without it the largest window of a frame tells.
        class_shares: (K,) shares of the classes among labelled pixels, where masks are known; they sum to 1.
        class_weights: (K,) factors for the rows of gradient embeddings, where a user aims at classes.
        videos: id -> video, of some or all frames; a video's frames are in pool order.
        features: like `pool`, maps (C, h, w) of an encoder that was never trained on it, for strategies that need no
            model.
        seed, round, n_rounds: of the experiment or project.
        batch_size: images the model is run on at a time.
        device: where the model is.
        precision: of the model's forward pass: None for its own type, or "bf16-mixed", "16-mixed" and the like.
        transform: applied to every batch of images on the device.
        scores_out: a folder for what the model says of the pool, so that a killed query continues there.
        progress: a bar, or a callable of (images done, images in all or None).
        drawing: called with (candidates drawn, of how many) where drawing them takes long.
        group: the processes that make this query together, each with the same one, or None for one process.
        embedding: further arguments of `embed_pool`, such as `on_nan` or `last_layer`.
    """

    candidates: Sequence[Candidate]
    pool: Pool
    model: nn.Module | None = None
    labelled: Sequence[Candidate] = ()
    centres: Sequence[Candidate] = ()
    in_norms: Sequence[Candidate] = ()
    regions: tuple[int, int] | None = None
    sizes: Mapping[Any, Sequence[int]] = field(default_factory=dict)
    class_shares: Tensor | None = None
    class_weights: Sequence[float] | None = None
    videos: Mapping[Id, str] = field(default_factory=dict)
    features: Pool | None = None
    seed: int = 0
    round: int = 0
    n_rounds: int = 1
    batch_size: int = 16
    device: torch.device | str = "cpu"
    precision: str | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    scores_out: Path | None = None
    progress: bool | Progress = False
    drawing: Progress | None = None
    group: dist.ProcessGroup | None = None
    embedding: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_cells(self) -> int:
        """Candidates that a frame may have."""
        return 1 if self.regions is None else self.regions[0] * self.regions[1]

    def stream_seed(self, purpose: str) -> int:
        """A generator's seed for this purpose, fixed by (seed, round)."""
        return stream_seed(purpose, self.seed, self.round)

    def labelled_elsewhere(self) -> list[Candidate]:
        """What is labelled and no candidate. A candidate that is labelled is named by the driver, as taken."""
        places = positions_of(self.candidates, self.labelled).tolist()
        return [item for item, place in zip(self.labelled, places, strict=True) if place < 0]


class Closed(Set[Candidate]):
    """Frames or windows, and all windows of some frames, which are not made before they are asked for.

    Args:
        items: they.
        frames: of which all windows belong.
        among: the candidates that these windows are.
    """

    def __init__(
        self, items: Iterable[Candidate] = (), frames: Iterable[Id] = (), among: Sequence[Candidate] = ()
    ) -> None:
        self.items = frozenset(items)
        self.frames = frozenset(frames)
        self.among = among

    def __contains__(self, item: object) -> bool:
        if item in self.items:
            return True
        return bool(self.frames) and isinstance(item, Window | str | int) and frame_of(item) in self.frames

    def __iter__(self) -> Iterator[Candidate]:
        yield from self.items
        if self.frames:
            of_frames = (self.among[at] for at in in_frames(self.among, self.frames).nonzero()[:, 0].tolist())
            yield from (item for item in of_frames if item not in self.items)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @classmethod
    def _from_iterable(cls, items: Iterable[Any]) -> Any:
        return frozenset(items)


class Taken(Set[Candidate]):
    """Candidates that must not be drawn.

    Attributes:
        picked: those that count as picked, and are centres of a seeding.
        closed: the others, that an annotator refused or a driver does not want now.
    """

    def __init__(self, picked: Iterable[Candidate] = (), closed: Iterable[Candidate] = ()) -> None:
        self.closed = closed if isinstance(closed, Closed) else Closed(closed)
        self.picked = frozenset(item for item in picked if item not in self.closed)

    def __contains__(self, item: object) -> bool:
        return item in self.picked or item in self.closed

    def __iter__(self) -> Iterator[Candidate]:
        yield from self.picked
        yield from self.closed

    def __len__(self) -> int:
        return len(self.picked) + len(self.closed)

    @classmethod
    def _from_iterable(cls, items: Iterable[Any]) -> Any:
        return frozenset(items)

    @staticmethod
    def of(items: Iterable[Candidate]) -> Taken:
        """These, which count as picked where nothing says that they are closed."""
        return items if isinstance(items, Taken) else Taken(items)

    def among(self, candidates: Sequence[Candidate]) -> tuple[Tensor, Tensor]:
        """Of candidates (n,): where the picked ones are, (m,) int64 ascending, and (n,) bool, which are taken."""
        gone = torch.zeros(len(candidates), dtype=torch.bool)
        if self.closed.frames:
            gone |= in_frames(candidates, self.closed.frames)
        picked = positions_of(candidates, self.picked).sort().values
        picked = picked[picked >= 0]
        closed = positions_of(candidates, self.closed.items)
        gone[picked] = gone[closed[closed >= 0]] = True
        return picked, gone


def positions_of(candidates: Sequence[Candidate], items: Collection[Candidate]) -> Tensor:
    """(m,) int64: where each is among candidates; -1 where it is not."""
    if isinstance(candidates, GridWindows):
        return candidates.positions_of(items)
    wanted = frozenset(items)
    places = {item: at for at, item in enumerate(candidates) if item in wanted} if wanted else {}
    return torch.tensor([places.get(item, -1) for item in items], dtype=torch.int64)


def in_frames(candidates: Sequence[Candidate], frames: Collection[Id]) -> Tensor:
    """(n,) bool: which candidates are, or are windows of, these frames."""
    if isinstance(candidates, GridWindows):
        return candidates.of_images(frames)
    return torch.tensor([frame_of(item) in frames for item in candidates], dtype=torch.bool)


def frames_of(candidates: Sequence[Candidate]) -> list[Id]:
    """The frames that are, or have, candidates, in their order."""
    if isinstance(candidates, GridWindows):
        return [candidates.ids[image] for image in candidates.images.unique_consecutive().tolist()]
    return list(dict.fromkeys(map(frame_of, candidates)))


def frames_at(candidates: Sequence[Candidate], positions: Tensor | None = None) -> list[Id]:
    """The frame that each candidate at (n,) positions is, or is a window of; of all for None."""
    if isinstance(candidates, GridWindows):
        images = candidates.images if positions is None else candidates.images[positions]
        return [candidates.ids[image] for image in images.tolist()]
    return [frame_of(candidates[at]) for at in (range(len(candidates)) if positions is None else positions.tolist())]


class ByCandidate(Mapping[Candidate, float]):
    """A number for each of some candidates, kept as an array.

    Args:
        candidates: a query's.
        positions: (n,) int64 ascending, of which of them.
        values: (n,).
    """

    def __init__(self, candidates: Sequence[Candidate], positions: Tensor, values: Tensor) -> None:
        self.candidates = candidates
        self.positions = positions
        self.values_in_order = values

    def __getitem__(self, candidate: Candidate) -> Any:
        at = positions_of(self.candidates, [candidate])
        row = torch.searchsorted(self.positions, at)
        if at[0] < 0 or row[0] == len(self.positions) or self.positions[row[0]] != at[0]:
            raise KeyError(candidate)
        return self.values_in_order[row[0]].item()

    def __iter__(self) -> Iterator[Candidate]:
        return (self.candidates[at] for part in self.positions.split(1 << 16) for at in part.tolist())

    def __len__(self) -> int:
        return len(self.positions)

    def items(self) -> Any:
        """As of any mapping, in one go."""
        return dict(zip(self, self.values_in_order.tolist(), strict=True)).items()


Draw: TypeAlias = Callable[[int, Taken], Sequence[Candidate]]
"""(n, taken) -> the next n candidates in order of picking, none of them in `taken`; fewer only where no more are left.

It answers equal questions alike, whatever was asked before. Every process of the query's group makes the call.
"""


@dataclass(frozen=True)
class Rating:
    """What a strategy knows about a query's candidates, and how it draws from them.

    Attributes:
        ids: the candidates of every process, in the query's order; without those that could not be rated.
        scores: a number per candidate, higher is more wanted; empty where the strategy rates nothing by itself. Where
            processes share the query, all of them read it or none does.
        draw: see `Draw`.
    """

    ids: Sequence[Candidate]
    scores: Mapping[Candidate, float]
    draw: Draw


class Strategy(ABC):
    """A way to choose. A subclass names itself and its paper, and rates queries; one body serves frames and windows,
    every command, one process and many.

    To use one of your own, write a class like this in any file and name it by `package.module:Class` or
    `path/to/file.py:Class`:

        from alges_fast.strategies import Strategy, by_score, candidate_images

        class Darkest(Strategy):
            name = "darkest"
            reference = "this docstring"
            needs_model = False

            def rate(self, query):
                return by_score(query, {c: -float(image.mean()) for c, image in candidate_images(query)})

    Attributes:
        name: what it is called, and its folder in an experiment.
        reference: where it is defined.
        needs_model: whether a query must have a trained model.
        reads_images: whether it looks at any image, its own or a model's account of it.
        trains_own_model: whether the model must be one that `prepare_model` made and `loss` trained.
        takes_whole_pool: whether it labels everything at once, so that there is nothing to rate.
        weighs_classes: whether it heeds a query's `class_weights`.
        embedding: the output of `pixel_gradients` that shows best why a candidate was picked.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    needs_model: ClassVar[bool] = True
    reads_images: ClassVar[bool] = True
    trains_own_model: ClassVar[bool] = False
    takes_whole_pool: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    embedding: ClassVar[str] = "image"

    @abstractmethod
    def rate(self, query: Query) -> Rating:
        """Rate the candidates. The same query must get the same answer."""

    def prepare_model(self, model: nn.Module, n_classes: int, seed: int) -> nn.Module:
        """The network this strategy trains, made from the one that the others train; seed fixes what is added.

        In eval mode it must map images to logits (B, n_classes, S, S).
        """
        return model

    def loss(self, model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
        """The loss this strategy trains its model with, which is in train mode; here cross-entropy.

        images: (B, 3, S, S) float32. masks: (B, S, S) int64, UNLABELLED where a pixel is not labelled.
        """
        return labelled_cross_entropy(model(images), masks)
