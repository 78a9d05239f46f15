"""k-means++ over a pool too large to keep: rows known by sketches of some hundred bytes, and in full where a draw asks.

1. A sketch is a row's coordinates along a few directions, in 8 bits, and the norm of what they leave. With it any
   distance lies between two bounds.
2. Every row keeps bounds of its D². A new centre passes over a row where norms, or the distance between the centre and
   the row's own (Raff 2021, "Exact acceleration of k-means++ and k-means‖"), show that it is not nearer.
3. The key E / D² of the race (race.py) lies between E / upper and E / lower. Only rows whose key may be the smallest
   contend: as many, on average, as Σ upper / Σ lower. They are made again in full, measured by the kernel that measures
   a pool in memory, and the smallest key wins.

So picks are those of `kmeans_plusplus` over the rows themselves, bit for bit, whatever a sketch leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import InitVar, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.seeding.native import NativeShard
from alges_fast.seeding.race import exponentials
from alges_fast.seeding.ranks import Leaders
from alges_fast.seeding.shard import DrawSpec, Shard

CODES = 112
"""Bytes of codes that a row's blocks share: eight directions for each of up to 14 classes."""
LEAST = 1e-3
"""Of the largest block's mean norm: blocks that are smaller in the sample are not enlarged beyond that."""
ABSORBED = 256
"""Centres absorbed at a time, between which distances are held."""
DEFERRED = 64
"""Centres that wait until rows that cannot win are lowered by them, at most: and never more than have been absorbed."""
TRIED = 16
"""Contenders made in full at a time, at first."""


@dataclass(frozen=True)
class Basis:
    """How rows of blocks (n, K, columns) are sketched.

    Attributes:
        directions: (columns, kept) float32, orthonormal: those in which the blocks of a sample are largest.
        factors: (K,) float32, 1 over the blocks' mean norms in the sample, so that no block's codes are lost.
    """

    directions: Tensor
    factors: Tensor

    @classmethod
    def of(cls, sample: Tensor) -> Basis:
        """For rows like these (n, K, columns), one at least."""
        blocks, columns = sample.shape[1:]
        rows = sample.double()
        norms = rows.norm(dim=2).mean(0)
        factors = 1 / norms.clamp(min=LEAST * float(norms.max())) if norms.any() else torch.ones_like(norms)
        scaled = (rows * factors[:, None]).flatten(0, 1)
        _, vectors = torch.linalg.eigh(scaled.T @ scaled)
        kept = min(max(CODES // blocks // 8, 1), -(-columns // 8)) * 8
        directions = torch.zeros(columns, kept)
        directions[:, : min(kept, columns)] = vectors.flip(1)[:, :kept].float()
        return cls(directions, factors.float())

    @property
    def rounding(self) -> float:
        """What float32 loses in sums over a block's columns, of a row's norm or, relative to it, squared."""
        columns, kept = self.directions.shape
        return 1.2e-7 * columns * math.sqrt(kept) + 2e-7

    def sketch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows (n, K, columns) float32: codes (n, width) int8, measures (n, 3) as `SketchedRows` has them, and the
        blocks' norms (n, K) float64. Of a row that is not finite the measures are NaN."""
        rows = rows.contiguous()
        n, blocks, columns = rows.shape
        kept = self.directions.shape[1]
        codes = torch.empty(n, -(-blocks * kept // 16) * 16, dtype=torch.int8)
        measures = torch.empty(3, n)
        norms = torch.empty(n, blocks, dtype=torch.float64)
        cpu_kernels().sketch_rows(  # type: ignore[union-attr]
            rows.data_ptr(),
            *(n, blocks, columns, kept),
            self.directions.data_ptr(),
            self.factors.data_ptr(),
            self.rounding,
            codes.shape[1],
            codes.data_ptr(),
            *(measure.data_ptr() for measure in measures),
            norms.data_ptr(),
            torch.get_num_threads(),
        )
        return codes, measures.T, norms


@dataclass
class SketchedRows:
    """(N, D) float32 points, D = K columns, that are not kept.

    Attributes:
        basis: that they were sketched by, as rows x of blocks.
        factors: (K,) float64, what a point's blocks are multiples of those of x by.
        codes: (N, width) int8, and with the codes' scale the coordinates of x along the basis, in its factors.
        measures: (N, 3) float32: scale of the codes, norm of what rounding them left, and norm of what lies outside the
            basis.
        make: positions -> (n, D), these points in full.
        open: (N,) bool, which of them may be picked; None for all.
        of_rows: (N,) float32, what each point is a multiple of x by, where the measures are not yet times that.
    """

    basis: Basis
    factors: Tensor
    codes: Tensor
    measures: InitVar[Tensor]
    make: Callable[[Sequence[int]], Tensor]
    open: Tensor | None = None
    made: dict[int, Tensor] = field(default_factory=dict)
    """Points made so far."""
    known: list[_Bounds] = field(default_factory=list)
    """What the last seeding over them knew of D², one at the most."""
    of_rows: InitVar[Tensor | None] = None
    on_draw: Callable[[], None] = lambda: None
    """Called before every point that is drawn."""

    dtype: ClassVar[torch.dtype] = torch.float32
    device: ClassVar[torch.device] = torch.device("cpu")

    def __post_init__(self, measures: Tensor, of_rows: Tensor | None) -> None:
        shares = self.factors.double() / self.basis.factors.double()
        most, positive = float(shares.max()), shares[shares > 0]
        self.shares = shares.repeat_interleave(self.basis.directions.shape[1])
        self.rest_share = float(shares.min()) / most if most else 1.0
        self.least_share = float(positive.min()) if len(positive) else 1.0
        self.sizes = torch.empty(4, len(self.codes))
        """Scale of the codes, norm of the point inside the basis, and of what rounding left and lies outside."""
        scale, norm, error, rest = self.sizes
        for size, measure in zip((scale, error, rest), measures.unbind(1), strict=True):
            size.copy_(measure)
            if of_rows is not None:
                size.mul_(of_rows)
        torch.mul(_norms(self.codes, self.shares), scale, out=norm)
        error.mul_(most)
        rest.mul_(most)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), len(self.factors) * len(self.basis.directions)

    @property
    def n_open(self) -> int:
        return len(self) if self.open is None else int(self.open.sum())

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        """(n, D), in full."""
        missing = [at for at in dict.fromkeys(positions) if at not in self.made]
        if missing:
            self.made.update(zip(missing, self.make(missing), strict=True))
        return torch.stack([self.made[at] for at in positions]) if len(positions) else torch.empty(0, self.shape[1])

    def only(self, open: Tensor) -> SketchedRows:
        """The same points, of which these alone may be picked."""
        same = copy(self)
        same.open = open
        return same


class _Bounds:
    """D² of sketched rows to some centres, between two bounds, as the kernel keeps them.

    Attributes:
        centres: (M, D).
        upper, lower: (N,). A row whose upper bound is 0 is not drawn.
        nearest: (N,) int32, number of the centre that gave the upper bound; -1 where it is not known.

    Centres may be deferred: upper bounds then hold and may be too high, lower ones hold for the earlier centres alone.
    """

    def __init__(self, points: SketchedRows, codes: Tensor, sizes: Tensor) -> None:
        n = len(codes)
        self.points, self._codes, self._sizes = points, codes, sizes
        self.centres = torch.empty(0, points.shape[1])
        self._deferred: tuple[Tensor, Tensor]
        """Centres that have come since all rows were lowered, as the kernel reads them."""
        self._apart: Tensor
        """(deferred, M): at least how far they are from all centres."""
        self._forget_deferred()
        self.upper = torch.full((n,), torch.inf)
        self.lower = torch.full((n,), torch.inf)
        self.nearest = torch.full((n,), -1, dtype=torch.int32)
        kernels = cpu_kernels()
        assert kernels is not None
        self._draw_type = kernels.SeedingDraw
        rounding = points.basis.rounding
        self._native = kernels.SketchedRows(
            codes.shape[1],
            *(tensor.data_ptr() for tensor in (codes, *sizes)),
            *(points.rest_share, math.sqrt(2 * rounding), points.least_share),
            *(tensor.data_ptr() for tensor in (self.upper, self.lower, self.nearest)),
        )

    def close(self, closed: Tensor) -> None:
        """Draw none of these rows (N,) bool."""
        for bound in (self.upper, self.lower):
            bound.masked_fill_(closed, 0)
        self.nearest.masked_fill_(closed, -1)

    def absorb(
        self, centres: Tensor, index: Tensor | None, draw: DrawSpec | None
    ) -> tuple[list[float], list[int], float, int]:
        """Find the contenders of a draw after centres (M, D) have come.

        Bounds of rows that cannot win are lowered later, by up to `DEFERRED` centres at once: a row's codes are then
        read from memory once for all of them.

        Args:
            centres: they.
            index: (N,) the rows' global indices; None where they are 0, 1, ...
            draw: which; None: lower the bounds of all.

        Returns:
            The contenders' least keys and positions; the largest upper bound; how many rows' codes were read, over all
            centres.
        """
        self._add(centres)
        codes, measures = self._deferred
        later = draw is not None and len(codes) <= min(DEFERRED, len(self.centres) - len(codes))
        first = len(self.centres) - len(codes)
        found: tuple[list[float], list[int], float, int] = self._native.absorb(
            len(self.upper),
            0 if index is None else index.data_ptr(),
            *(len(codes), first),
            codes.data_ptr(),
            *(measure.data_ptr() for measure in measures),
            *(self._apart.data_ptr(), len(self.centres)),
            self._draw_type("none", 0, 0, 0) if draw is None else self._draw_type(draw.rule, draw.seed, draw.round, 1),
            later,
            torch.get_num_threads(),
        )
        if not later:
            self._forget_deferred()
        return found

    def _add(self, centres: Tensor) -> None:
        """Centres (m, D) to the deferred ones, and how far apart these and all others are, at least."""
        deferred = slice(len(self.centres) - len(self._apart), len(self.centres))
        self.centres = torch.cat([self.centres, centres])
        codes, measures = self._coded(centres)
        self._deferred = torch.cat([self._deferred[0], codes]), torch.cat([self._deferred[1], measures], 1)
        between = torch.cdist(centres.double(), self.centres.double(), compute_mode="donot_use_mm_for_euclid_dist")
        apart = (between * (1 - 1e-6)).float()
        self._apart = torch.cat([torch.cat([self._apart, apart[:, deferred].T], 1), apart])

    def _forget_deferred(self) -> None:
        self._deferred = torch.empty(0, self._codes.shape[1], dtype=torch.int16), torch.empty(5, 0)
        self._apart = torch.empty(0, len(self.centres))

    def go_on_from(self, centres: Tensor, open: Tensor | None) -> Tensor | None:
        """Take up these centres (M, D) in the place of those that there are, for other open rows: those of them that
        are new, and not absorbed yet; None where too much would be known anew.

        A row whose nearest centre stays keeps its bounds: without other centres D² can only grow, up to the distance
        that gave the upper one.
        """
        self.absorb(self.centres[:0], None, None)  # what is deferred
        numbers = {row.tobytes(): number for number, row in enumerate(self.centres.numpy())}
        old = torch.tensor([numbers.get(row.tobytes(), -1) for row in centres.numpy()], dtype=torch.int64)
        stay = centres[old >= 0]
        renumbered = torch.full((len(self.centres) + 1,), -1, dtype=torch.int32)
        renumbered[old[old >= 0] + 1] = torch.arange(len(stay), dtype=torch.int32)
        for part in self.nearest.split(_PIECE):
            part.copy_(renumbered[(part + 1).long()])
        if open is not None:
            self.close(~open)
        lost = self.nearest < 0
        if open is not None:
            lost &= open
        rows = lost.nonzero()[:, 0]
        if len(rows) > len(self.nearest) / 4:
            return None
        self.centres = torch.empty_like(stay)
        self.centres.copy_(stay)
        self._forget_deferred()
        some = _Bounds(self.points, self._codes[rows], self._sizes[:, rows].contiguous())
        for part in stay.split(ABSORBED):
            some.absorb(part, None, None)
        for mine, theirs in ((self.upper, some.upper), (self.lower, some.lower), (self.nearest, some.nearest)):
            mine[rows] = theirs
        return centres[old < 0]

    def _coded(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Centres as the kernel reads them: codes, and (5, M) step, norm, error, rest, error of a dot product."""
        points = self.points
        width, directions, rounding = self._codes.shape[1], points.basis.directions.double(), points.basis.rounding
        blocks = centres.double().view(len(centres), len(points.factors), len(directions))
        inside = (blocks @ directions).flatten(1)
        all_sq, inside_sq = blocks.square().sum((1, 2)), inside.square().sum(1)
        weighted = torch.zeros(len(centres), width, dtype=torch.float64)
        weighted[:, : inside.shape[1]] = inside * points.shares
        most = min(32767, (2**31 - 1) // (127 * width))
        step = (weighted.abs().amax(1) / most).float() if len(centres) else torch.empty(0)
        codes = (weighted / step.double().clamp(min=1e-300)[:, None]).round().clamp(-most, most).to(torch.int16)
        rest = ((all_sq - inside_sq).clamp(min=0) + rounding * all_sq).sqrt()
        of_dot = step.double() * (math.sqrt(width) / 2 * (1 + 1e-4))
        measures = [step, inside_sq.sqrt(), rounding * all_sq.sqrt(), rest, of_dot]
        return codes, torch.stack([measure.float() for measure in measures])


class SketchedShard(Shard):
    """Bounds of D² over sketched rows; draws as `NativeShard` does over the rows themselves.

    Where the last seeding over the same rows knew most of the centres, its bounds are gone on with.
    """

    name = "sketched"
    read = 0
    """Rows whose codes the passes so far have read, over all centres; the others were passed over."""
    contended = 0
    """Rows made in full for draws."""

    def __init__(self, points: SketchedRows, index: Tensor) -> None:
        self.sketched = points
        self.index = self._index = index.contiguous()
        self.dtype = torch.float32
        self.weights = self.nearest = None
        n = len(points)
        in_order = n > 0 and int(index[0]) == 0 and int(index[-1]) == n - 1 and bool((index[1:] > index[:-1]).all())
        self._shown_index = None if in_order else self._index
        self._bounds: _Bounds | None = None

    def _begun(self, centres: Tensor) -> tuple[_Bounds, Tensor]:
        """The bounds, and those of these first centres that they do not know yet."""
        if self._bounds is not None:
            return self._bounds, centres
        points, new = self.sketched, None
        if points.known and len(centres):
            new = points.known[0].go_on_from(centres, points.open)
        if new is None:
            points.known.clear()
            points.known.append(_Bounds(points, points.codes, points.sizes))
            if points.open is not None:
                points.known[0].close(~points.open)
        self._bounds = points.known[0]
        self.min_sq_distance = self._bounds.upper  # at most
        return self._bounds, centres if new is None else new

    def draw(self, draw: DrawSpec | None) -> Leaders:
        if draw is not None and draw.rule == "uniform":
            order = self.uniform_order(draw, (), 1)
            if not order:
                return Leaders((math.inf,), (-1,), (-1,), 0.0)
            key, index = order[0]
            return Leaders((key,), (index,), tuple(self.positions([index])), 0.0)
        return self.absorb(torch.empty(0, self.sketched.shape[1]), draw)

    def absorb(self, centres: Tensor, draw: DrawSpec | None) -> Leaders:
        if draw is not None:
            self.sketched.on_draw()
        bounds, centres = self._begun(centres)
        parts = centres.split(ABSORBED) if len(centres) else (centres,)
        for part in parts:
            of_part = draw if part is parts[-1] else None
            keys, positions, largest, read = bounds.absorb(part, self._shown_index, of_part)
            self.read += read
        if draw is None:
            return Leaders((), (), (), largest)
        key, index, position = self._smallest(bounds, keys, positions, draw)
        return Leaders((key,), (index,), (position,), largest)

    def potentials(self, centres: Tensor, scale: float) -> Tensor:
        raise NotImplementedError("sketched rows know no sums of D²")

    def accept(self, trial: int, draw: DrawSpec | None) -> Leaders:
        raise NotImplementedError("sketched rows know no sums of D²")

    def uniform_order(self, draw: DrawSpec, without: Sequence[int], count: int) -> list[tuple[float, int]]:
        best: list[tuple[float, int]] = []
        for start in range(0, len(self.index), _PIECE):
            index = self._index[start : start + _PIECE]
            keys = exponentials(index, draw.seed, draw.round, 0, index.device)
            if self.sketched.open is not None:
                keys.masked_fill_(~self.sketched.open[start : start + _PIECE], torch.inf)
            keys[[row - start for row in without if 0 <= row - start < len(keys)]] = torch.inf
            some = keys.topk(min(count, len(keys)), largest=False)
            best += [
                (key, int(index[row])) for key, row in zip(*map(Tensor.tolist, some), strict=True) if key < math.inf
            ]
            best = sorted(best)[:count]
        return best

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """None: whether rows are finite was looked at when they were sketched."""
        return iter(())

    def rows(self, positions: Sequence[int]) -> Tensor:
        held = [position for position in positions if position >= 0]
        rows = torch.zeros(len(positions), self.sketched.shape[1])
        rows[[at for at, position in enumerate(positions) if position >= 0]] = self.sketched[held]
        return rows

    def _smallest(
        self, bounds: _Bounds, keys: list[float], positions: list[int], draw: DrawSpec
    ) -> tuple[float, int, int]:
        """The smallest key of all rows, with its global index and position: the contenders' own are asked, from the
        least that they may be on, until no other can be smaller."""
        best = math.inf, -1, -1
        order = sorted(range(len(keys)), key=keys.__getitem__)
        tried = TRIED
        while order and keys[order[0]] <= best[0]:
            some, order = [positions[at] for at in order[:tried]], order[tried:]
            tried *= 2
            self.contended += len(some)
            exact = NativeShard(self.sketched[some], self._index[some], len(bounds.centres))
            measured = exact.absorb(bounds.centres, draw)
            bounds.upper[some] = bounds.lower[some] = exact.min_sq_distance
            bounds.nearest[some] = -1  # it need not be the one that gave the bound
            if measured.keys[0] < math.inf:
                best = min(best, (measured.keys[0], measured.indices[0], some[measured.positions[0]]))
        return best


_PIECE = 1 << 16


def _norms(codes: Tensor, shares: Tensor) -> Tensor:
    """(N,) float32: the norm of each row's codes, column by column times a share."""
    squares = torch.zeros(codes.shape[1])
    squares[: len(shares)] = shares.square().float()
    norms = torch.empty(len(codes))
    for start in range(0, len(codes), _PIECE):
        norms[start : start + _PIECE] = codes[start : start + _PIECE].float().square_().mv(squares).sqrt_()
    return norms
