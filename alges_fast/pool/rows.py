"""Rows of every output as they come, in memory or in files; a NaN or infinity is found out here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alges_fast.pool.errors import CannotContinue
from alges_fast.pool.row_file import RowFile
from alges_fast.pool.source import Batch, Id, Source, checksums

logger = logging.getLogger("alges_fast.pool")


@dataclass(frozen=True)
class PoolEmbeddings:
    """Outputs of every image scored, in pool order.

    Attributes:
        ids: the images' names, or their positions where the pool gives none.
        values: (N, *shape of the output for one image) on the CPU: float32, but float64 for a float64 model and int64
            for class_pixels; backed by the file where `out` was given. Of several outputs the first.
        positions: (N,) int64, the images' positions in the pool: `global_index` of a sharded seeding.
        outputs: every output asked for, by name, each like `values`.
    """

    ids: tuple[Id, ...]
    values: Tensor
    positions: Tensor
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Scored:
    """A batch and what the model makes of it, on the way to the host until `event` has passed."""

    batch: Batch
    checksums: Sequence[int]
    """As the files keep them, of the images before a transform or the model could write to them."""
    tensors: list[Tensor]
    """Whether each image is finite, then every output."""
    event: torch.cuda.Event | None


class Rows:
    """Rows of every output as they come, in memory or in files."""

    def __init__(self, names: Sequence[str], files: dict[str, RowFile], *, skip_bad: bool) -> None:
        self.names = names
        self.files = files
        self.skip_bad = skip_bad
        self.total = 0
        """Rows to make room for."""
        self.items: list[tuple[int, Id]] = []
        self.values: dict[str, _Table] = {}
        self.skipped: list[Id] = []
        self.seen: set[Id] = set()
        self.done = min((file.done for file in files.values()), default=0)  # a kill may have come between two of them
        """Images of this rank's shard looked at so far, skipped ones included."""

    def fill(self, source: Source, score: Callable[[Batch], Scored], advance: Callable[[int], None]) -> None:
        """Score the images that are not there yet, after a look at the last ones that are.

        Args:
            source: all images of this rank's shard.
            score: what the model makes of a batch.
            advance: called with the number of images just done.
        """
        self.total = source.total or 0
        first, start = source.restart(self.done)
        self.go_back_to(start)
        advance(start)
        waiting: Scored | None = None
        for batch in source.batches(first):
            if first < start:
                self.compare(first, batch)
                first += len(batch.ids)
                continue
            scored = score(batch)
            # One batch behind, so that a GPU has the next one to work on while this one is looked at.
            if waiting is not None:
                advance(self.add(waiting))
            waiting = scored
        if waiting is not None:
            advance(self.add(waiting))
        if not self.done:
            self.add_none(score(source.any_image()))

    def go_back_to(self, done: int) -> None:
        """Forget the images after the first `done`."""
        self.done = done
        for file in self.files.values():
            file.truncate(done)
            self.seen = {id for _, id, _, _ in file.items}
            left_out = [id for _, id, kept, _ in file.items if not kept]
            if left_out and not self.skip_bad:
                raise CannotContinue(
                    f"out: {file.path} was made with on_nan='skip', without image {', '.join(map(repr, left_out))}",
                    file.path,
                )

    def compare(self, first: int, batch: Batch) -> None:
        """Check that a batch is what the files hold from their image number `first` on."""
        for file in self.files.values():
            held = file.items[first : first + len(batch.ids)]
            read = zip(batch.positions, batch.ids, checksums(batch.images), strict=True)
            for (position, id, checksum), (_, before, _, checksum_before) in zip(read, held, strict=True):
                if (id, checksum) != (before, checksum_before):
                    what = f"{before!r} with other pixels" if id == before else f"{before!r}, not {id!r}"
                    raise CannotContinue(
                        f"pool: it has changed since {file.path} was made: image {position} was {what}", file.path
                    )

    def add(self, scored: Scored) -> int:
        """Check and keep a batch; the number of its images."""
        if scored.event is not None:
            scored.event.synchronize()
        batch, (finite, *outputs) = scored.batch, scored.tensors
        for id in batch.ids:
            if id in self.seen:
                raise ValueError(f"pool: id {id!r} occurs twice; ids must name one image each")
            self.seen.add(id)
        good = finite.clone()
        for values in outputs:
            good &= finite_rows(values)
        if not good.all():
            self._refuse([id for id, fine in zip(batch.ids, finite.tolist(), strict=True) if not fine], _BAD_IMAGE)
            self._refuse(
                [id for id, f, g in zip(batch.ids, finite.tolist(), good.tolist(), strict=True) if f and not g],
                _BAD_MODEL,
            )
        items = list(zip(batch.positions, batch.ids, good.tolist(), scored.checksums, strict=True))
        for name, values in zip(self.names, outputs, strict=True):
            rows = values if good.all() else values[good]
            if name in self.files:
                self.files[name].append(items, rows)
                continue
            table = self.values.setdefault(name, _Table(rows, self.total))
            if table.shape != rows.shape[1:]:
                raise ValueError(
                    f"pool: {name} of image {batch.ids[0]!r} has shape {tuple(rows.shape[1:])}, of the first image "
                    f"{tuple(table.shape)}: for this output all images must have one size"
                )
            table.append(rows)
        self.items += [(position, id) for position, id, keep, _ in items if keep]
        self.done += len(items)
        return len(items)

    def add_none(self, scored: Scored) -> None:
        """No rows, but of the shape of this batch's: for a rank that has no image."""
        for name, values in zip(self.names, scored.tensors[1:], strict=True):
            if name in self.files:
                self.files[name].append([], values[:0])
            else:
                self.values[name] = _Table(values, 0)

    def finish(self) -> PoolEmbeddings:
        items, skipped = self.items, self.skipped
        outputs = {name: table.rows for name, table in self.values.items()}
        for name, file in self.files.items():
            items = [(position, id) for position, id, kept, _ in file.items if kept]
            skipped = [id for _, id, kept, _ in file.items if not kept]
            outputs[name] = file.finish()
        if skipped:
            logger.warning("embed_pool left out %d images: %s", len(skipped), ", ".join(map(repr, skipped)))
        return PoolEmbeddings(
            ids=tuple(id for _, id in items),
            values=outputs[self.names[0]],
            positions=torch.tensor([position for position, _ in items], dtype=torch.int64),
            outputs=outputs,
        )

    def _refuse(self, ids: list[Id], what: str) -> None:
        if ids and not self.skip_bad:
            raise ValueError(f"{what} {', '.join(map(repr, ids))}; on_nan='skip' leaves such images out")
        self.skipped += ids


def finite_rows(values: Tensor) -> Tensor:
    """(B,) bool: which rows (B, ...) have no NaN or infinity.

    A sum shows them all in one pass; only where it is not finite, which may be for its size, every number is asked.
    """
    rows = values.flatten(1) if values.ndim > 1 else values[:, None]
    shown: Tensor = rows.sum(1).isfinite()
    return shown if bool(shown.all()) else rows.isfinite().all(1)


class _Table:
    """Rows in one piece of memory. Kept batch by batch they would lie in what the batch before has freed, so that the
    next batch finds no room there, and a pass over a pool takes the memory of all of its batches."""

    def __init__(self, like: Tensor, capacity: int) -> None:
        self.shape = like.shape[1:]
        self.n = 0
        self.memory = like.new_empty(capacity, *self.shape)

    def append(self, rows: Tensor) -> None:
        end = self.n + len(rows)
        if end > len(self.memory):
            earlier, self.memory = self.rows, rows.new_empty(max(end, 2 * len(self.memory)), *self.shape)
            self.memory[: self.n] = earlier
        self.memory[self.n : end] = rows
        self.n = end

    @property
    def rows(self) -> Tensor:
        return self.memory[: self.n]


_BAD_IMAGE = "pool: NaN or infinity in the pixels of image"
_BAD_MODEL = "pool: the pixels are finite but the model makes a NaN or infinity of image"
