"""Gradient embeddings of a query's candidates as points of a seeding: in memory, or sketched where they do not fit.

A window's embedding takes 1.7 kB and hours of video have millions of windows. Sketched while the model goes over the
pool, they are a tenth of that; a draw asks for the few that contend for it in full, and their frames are embedded once
more (seeding/sketched.py). What is picked is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from alges_fast._native import cpu_kernels
from alges_fast.pool import Id, pool_ids
from alges_fast.seeding.sketched import Basis, SketchedRows
from alges_fast.strategies.base import Query
from alges_fast.strategies.embedding import embed, embed_frames, embedded_frames, found_layer, gather, gathered, placed

KEPT, KEPT_OF_HEAD = 1 << 30, 1 << 28
"""Bytes of embeddings that a process keeps in memory, and those of a head over maps, which are made again in a
millisecond; of more it keeps sketches. Two processes with .46 million windows each took 43 CPU seconds for 256 picks
where these were kept (0.8 GB each), and 27 where they were sketched."""
SAMPLED_FRAMES, SAMPLED_ROWS = 64, 4096
"""Frames, evenly spaced, that sketches' directions are taken from, and rows in them, at least."""

Scale = Callable[[Tensor, Tensor], Tensor]
"""(rows (m, K, ...), (m,) int64 which of the candidates they are) -> the points, (m, K, ...)."""


@dataclass(frozen=True)
class EmbeddedRows:
    """Of this process's candidates.

    Attributes:
        positions: (n,) int64 ascending, where they are among the query's candidates.
        outputs: other outputs by name, (n, ...) on the CPU.
        rows: (n, K, ...) embeddings; None where they are sketched.
        sketched: what is kept in their place.
    """

    positions: Tensor
    outputs: dict[str, Tensor]
    rows: Tensor | None
    sketched: Sketched | None = None

    @property
    def n_classes(self) -> int:
        """K."""
        rows = self.rows if self.sketched is None else self.sketched.norm_sums
        assert rows is not None
        return rows.shape[1]

    def points(self, scale: Scale, of_classes: Tensor, of_rows: Tensor | None) -> Tensor | SketchedRows:
        """(n, D) points.

        Args:
            scale: makes points of rows; what it multiplies a row of a class and of a candidate by are these, up to
                rounding:
            of_classes: (K,) float64.
            of_rows: (n,), or None for 1.
        """
        if self.rows is not None:
            return scale(self.rows, torch.arange(len(self.rows))).flatten(1)
        assert self.sketched is not None
        sketched, again = self.sketched, self.sketched.again

        def make(at: Sequence[int]) -> Tensor:
            return scale(again(at), torch.tensor(at)).flatten(1)

        return SketchedRows(sketched.basis, of_classes, sketched.codes, sketched.measures, make, of_rows=of_rows)


@dataclass(frozen=True)
class Again:
    """Makes embeddings of this process's candidates once more.

    Attributes:
        frames: places in the pool of this process's frames.
        rows: (n,) int64, the frame's number times its windows, plus the window's number.
    """

    query: Query
    output: str
    frames: Sequence[int]
    rows: Tensor

    def __call__(self, at: Sequence[int]) -> Tensor:
        """(m, K, ...), the embeddings of the candidates at these positions."""
        n_cells = self.query.n_cells
        rows = self.rows[list(at)]
        numbers, place = (rows // n_cells).unique(return_inverse=True)
        frames = [self.frames[number] for number in numbers.tolist()]
        values = _embedded(self.query, self.output, frames)
        return values[place, rows % n_cells] if self.query.regions is not None else values[place]


@dataclass(frozen=True)
class Sketched:
    """Sketches of embeddings, and how to make an embedding again.

    Attributes:
        basis: of the sketches.
        codes, measures: (n, width) and (n, 3).
        norm_sums: (frames, K) float64, the classes' norms summed over the candidates of each frame.
    """

    again: Again
    basis: Basis
    codes: Tensor
    measures: Tensor
    norm_sums: Tensor


def embed_rows(query: Query, output: str, beside: Sequence[str] = ()) -> EmbeddedRows:
    """The embeddings of this process's candidates.

    Args:
        output: `image` or `semantic_vector`; of others, which are small, all are kept.
        beside: further outputs of `embed`.
    """
    if not _too_large(query, output):
        found = embed(query, (output, *beside))
        return EmbeddedRows(found.positions, dict(found.outputs), found.outputs[output])
    layer, _ = found_layer(query)
    query = replace(query, embedding={**query.embedding, "last_layer": layer})
    frames, n_cells = embedded_frames(query), query.n_cells
    every = max(len(frames) // max(SAMPLED_FRAMES, SAMPLED_ROWS // n_cells), 1)
    sample = _embedded(query, output, frames[::every])
    basis = Basis.of(sample.flatten(0, 0 if query.regions is None else 1).flatten(2).float())
    ids = pool_ids(query.pool)
    positions, rows = placed(query, query.candidates, [ids[at] for at in frames])
    belongs = torch.zeros(len(frames) * n_cells, dtype=torch.bool)
    belongs[rows] = True
    belongs = belongs.view(len(frames), n_cells, 1)
    number = {ids[at]: row for row, at in enumerate(frames)}

    def keep(these: Sequence[Id], made: dict[str, Tensor]) -> dict[str, Tensor]:
        n = len(these)
        blocks = made[output].float().reshape(n * n_cells, layer.n_classes, -1)
        codes, measures, norms = basis.sketch(blocks)
        norms = norms.view(n, n_cells, -1) * belongs[[number[id] for id in these]]
        return {
            "codes": codes.view(n, n_cells, -1),
            "measures": measures.reshape(n, n_cells, 3),
            "norm_sums": norms.sum(1),
            **{name: made[name] if query.regions is not None else made[name][:, None] for name in beside},
        }

    kept = embed_frames(query, (output, *beside), keep=keep).outputs
    norm_sums = kept.pop("norm_sums")
    of_rows = {name: _taken(values.flatten(0, 1), rows) for name, values in kept.items()}
    codes, measures = of_rows.pop("codes"), of_rows.pop("measures")
    return EmbeddedRows(
        positions, of_rows, None, Sketched(Again(query, output, frames, rows), basis, codes, measures, norm_sums)
    )


def sum_of_norms(query: Query, found: EmbeddedRows) -> tuple[Tensor, int]:
    """(K,) float64, the norms of each class's row summed over all candidates of all processes, and how many these are.

    Summed in the query's order on every process: the same bit for bit however the pool is cut.
    """
    if found.rows is not None:
        norms = gathered(query, found.positions, norms_of(found.rows))[1]
        return norms.sum(0), len(norms)
    assert found.sketched is not None
    sums = gathered(query, torch.tensor(found.sketched.again.frames), found.sketched.norm_sums)[1]
    return sums.sum(0), sum(gather(query, len(found.positions)))


def norms_of(rows: Tensor) -> Tensor:
    """(N, K) float64 of (N, K, ...), piece by piece: windows of a pool take gigabytes, and twice as much in float64."""
    return torch.cat([part.flatten(2).double().norm(dim=2) for part in rows.split(_PIECE)])


_PIECE = 256
"""Rows whose copy in float64 stays in the cache."""


def _too_large(query: Query, output: str) -> bool:
    """Whether these embeddings are to be sketched: none that are kept in files, or wanted on a GPU."""
    n = len(query.candidates) // (1 if query.group is None else dist.get_world_size(query.group))
    where = torch.device(query.device).type == "cpu" and query.scores_out is None
    if output not in ("image", "semantic_vector") or not where or isinstance(query.pool, DataLoader):
        return False
    if cpu_kernels() is None or query.model is None or query.embedding.get("on_nan", "raise") != "raise":
        return False
    largest = max((parameter.numel() for parameter in query.model.parameters()), default=0)
    if 4 * n * largest <= min(KEPT, KEPT_OF_HEAD):  # no last layer is larger, and it need not be looked for
        return False
    layer, example = found_layer(query)
    weight, kept = layer.module.weight, min(KEPT, KEPT_OF_HEAD) if layer.reads_as_kept(example) else KEPT
    return isinstance(weight, Tensor) and weight.dtype != torch.float64 and 4 * n * math.prod(weight.shape) > kept


def _embedded(query: Query, output: str, frames: Sequence[int]) -> Tensor:
    """Of these frames of the pool, by this process alone."""
    made = embed_frames(query, (output,), frames, group=None, progress=False)
    return made.outputs[output]


def _taken(values: Tensor, rows: Tensor) -> Tensor:
    """values[rows] of rising rows, in the memory of `values`."""
    if len(rows) == len(values):
        return values
    for start in range(0, len(rows), 1 << 16):
        part = rows[start : start + (1 << 16)]
        values[start : start + len(part)] = values[part]
    return values[: len(rows)]
