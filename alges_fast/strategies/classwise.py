"""ALGES with every class its due: rows of Eq. 4 balanced, paid for by predicted effort, or seeded class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from alges_fast._native import cpu_kernels
from alges_fast.last_layer import OUTLINE
from alges_fast.seeding.native import NativeShard
from alges_fast.seeding.ranks import Leaders, Ranks
from alges_fast.seeding.shard import DrawSpec, Shard, TorchShard
from alges_fast.strategies.alges import Alges, balanced
from alges_fast.strategies.base import Candidate, Query, Rating, Strategy, Taken
from alges_fast.strategies.effort import predicted_costs
from alges_fast.strategies.embedded_rows import EmbeddedRows, norms_of, sum_of_norms
from alges_fast.strategies.embedding import embed, gathered, on_every_process
from alges_fast.strategies.power import predicted_shares
from alges_fast.strategies.rating import rated
from alges_fast.strategies.registry import register_strategy


@register_strategy
class AlgesImageBalanced(Alges):
    """k-means++ over Eq. 4 with class k's row divided by its mean norm over all candidates.

    The gradients of large classes are large in most candidates; so divided, every class has as much to say.
    """

    name: ClassVar[str] = "alges-img-balanced"
    reference: ClassVar[str] = "alges_fast: Aklilu & Yeung 2022, Eq. 4, with rows of mean norm 1"

    def row_norms(self, query: Query, found: EmbeddedRows) -> Tensor:
        return mean_norms(query, found)


@register_strategy
class AlgesEffort(AlgesImageBalanced):
    """`alges-img-balanced` over predicted cost: every embedding is divided by the square root of what its candidate is
    expected to cost an annotator.

    The cost is the predicted outline inside the candidate, the changes of class of the argmax map, plus a quarter of
    its side, which drawing nothing costs (see `predicted_costs`). With points so scaled a candidate's squared norm, its
    D² to a centre at 0, is divided by its cost; between two candidates both are scaled. That is the definition, and not
    D² over cost, in which a centre's cost would play no part.
    """

    name: ClassVar[str] = "alges-effort"
    reference: ClassVar[str] = "alges_fast; cost-aware as Mackowiak et al., CEREALS, BMVC 2018"

    beside: ClassVar[tuple[str, ...]] = (OUTLINE,)
    power: ClassVar[float] = 0.5
    """Of the cost that an embedding is divided by."""

    def cost(self, query: Query, found: EmbeddedRows) -> Tensor:
        return predicted_costs(query, found).pow(self.power).float()


@register_strategy
class AlgesFrugal(AlgesEffort):
    """`alges-img-balanced` with every embedding divided by its candidate's predicted cost itself: gradient per pixel of
    outline, the ratio of benefit to cost. D² to a centre at 0 is divided by the cost's square.

    It leaves more of what is dear than `alges-effort` does, and asks for small queries: an early model's boundaries are
    ragged, and what it would have paid for is better known after the next training.
    """

    name: ClassVar[str] = "alges-frugal"
    reference: ClassVar[str] = "alges_fast; benefit over cost as Haertel et al., Return on investment, NAACL 2008"
    power: ClassVar[float] = 1.0


@register_strategy
class AlgesClass(Strategy):
    """k-means++ in the row of one class of Eq. 4, for an equal share of the picks each.

    Classes take turns, the rarest by predicted mass first, so any prefix of a batch is shared out like the whole. What
    is labelled, and every pick whichever class it was made for, is a centre in all classes' rows.
    """

    name: ClassVar[str] = "alges-class"
    reference: ClassVar[str] = "alges_fast: Aklilu & Yeung 2022, the k-th block of Eq. 4"

    def rate(self, query: Query) -> Rating:
        found = embed(query, ("image", "class_mass"))
        image, positions = found.outputs["image"], found.positions
        # D² sampling does not see a row's scale, but squares of tiny gradients would underflow.
        norms = mean_norms(query, EmbeddedRows(positions, {}, image))
        rows = balanced(image, norms).flatten(2).to(query.device)
        turns = predicted_shares(query, found.outputs["class_mass"]).sort(stable=True).indices.tolist()
        others = query.labelled_elsewhere()
        known = balanced(on_every_process(query, others, _images), norms).flatten(2) if others else rows[:0].cpu()
        return by_shards(query, positions, rows, known, turns)


def _images(query: Query) -> tuple[Tensor, Tensor]:
    found = embed(query, ("image",))
    return found.positions, found.outputs["image"]


def mean_norms(query: Query, found: EmbeddedRows) -> Tensor:
    """(K,) float64: the mean norm of each class's row over all candidates of all processes, and the query's `in_norms`.

    Summed in the query's order on every process: the same bit for bit however the pool is cut.
    """
    total, n = sum_of_norms(query, found)
    if query.in_norms:
        others = norms_of(on_every_process(query, query.in_norms, _images))
        total, n = total + others.sum(0), n + len(others)
    return total / n


def by_shards(query: Query, positions: Tensor, rows: Tensor, existing: Tensor, classes: Sequence[int]) -> Rating:
    """A rating that draws by `seed_by_class`.

    Args:
        positions, rows: this process's candidates, (n,) and (n, K, D).
        existing: (M, K, D) centres that count from the start; the same on every process.
        classes: the order of turns.
    """
    everywhere, _ = gathered(query, positions, positions)

    def draw(n: int, taken: Taken) -> list[Candidate]:
        at, gone = Taken.of(taken).among(query.candidates)
        free, picked = ~gone[positions], torch.isin(positions, at)
        _, centres = gathered(query, positions[picked], rows[picked].cpu())
        n = min(n, int((~gone[everywhere]).sum()))
        if n <= 0:
            return []
        chosen = seed_by_class(
            rows[free],
            positions[free],
            n,
            torch.cat([existing, centres]),
            classes=classes,
            begun=len(centres),
            seed=query.stream_seed("seeding"),
            group=query.group,
        )
        return [query.candidates[at] for at in chosen]

    return Rating(rated(query, positions), {}, draw)


def seed_by_class(
    rows: Tensor,
    index: Tensor,
    n: int,
    existing: Tensor,
    *,
    classes: Sequence[int],
    begun: int,
    seed: int,
    group: dist.ProcessGroup | None,
) -> list[int]:
    """n global indices by k-means++, each draw in the rows of one class, classes in turn: a prefix of any length gives
    every class its share, to a pick.

    What was picked for one class is a centre for all. So every class keeps its own running D², and catches up with the
    centres of a whole turn at once when it is its turn again.

    Args:
        rows: (N, K, D), this process's.
        index: (N,) int64, their indices in the whole pool.
        n: how many, at most the points of all processes.
        existing: (M, K, D) centres that count from the start; the same on every process.
        classes: the order of turns.
        begun: picks made already, after which the turns go on.
    """
    ranks = Ranks(group, rows.device)
    native = rows.device.type == "cpu" and cpu_kernels() is not None
    make: type[Shard] = NativeShard if native else TorchShard
    shards = {k: make(rows[:, k].contiguous(), index, len(existing) + n) for k in classes}
    centres = existing.to(rows)
    counted = dict.fromkeys(classes, 0)
    picks: list[int] = []
    for pick in range(begun, begun + n):
        k = classes[pick % len(classes)]
        draw = DrawSpec("race", seed, pick)
        if len(centres):
            candidates = shards[k].absorb(centres[counted[k] :, k], draw)
            counted[k] = len(centres)
            winners = ranks.best(candidates)
            if math.isnan(winners.largest):
                raise ValueError("points must be finite, got NaN or Inf")
        if not len(centres) or winners.keys[0] == math.inf:  # nothing to tell the class's rows apart: any that is left
            candidates = _any_left(shards[k], replace(draw, rule="uniform"), picks)
            winners = ranks.best(candidates)
        held = candidates.positions[0] if winners.owners[0] == ranks.rank else -1
        own = rows[held] if held >= 0 else torch.zeros_like(centres[:1].sum(0))
        row = ranks.rows(own.flatten()[None], winners.owners)
        centres = torch.cat([centres, row.view(1, *centres.shape[1:])])
        picks.append(winners.indices[0])
    return picks


def _any_left(shard: Shard, draw: DrawSpec, picks: Sequence[int]) -> Leaders:
    """The first of a uniform order of the shard's points without those picked."""
    order = shard.uniform_order(draw, shard.positions(picks), 1)
    if not order:
        return Leaders((math.inf,), (-1,), (-1,), 0.0)
    key, index = order[0]
    return Leaders((key,), (index,), tuple(shard.positions([index])), 0.0)
