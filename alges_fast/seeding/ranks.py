"""What the ranks that share one pool tell each other: that their arguments agree, the winner of every draw, its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Leaders:
    """One rank's best points of one pass. The smallest key wins a draw, and of equal keys the lowest global index."""

    keys: Sequence[float]  # inf: this rank has no point that can win
    indices: Sequence[int]  # global; -1 where the key is inf
    positions: Sequence[int]  # rows of the shard; -1 where the key is inf
    largest: float  # of the running squared distances; 0 for an empty shard, NaN where one is not finite


@dataclass(frozen=True)
class Winners:
    """The same for all ranks together."""

    keys: tuple[float, ...]
    indices: tuple[int, ...]
    owners: tuple[int, ...]  # rank in the group
    largest: float


class Ranks:
    """The ranks of `group`, or this process alone. Every method is collective: all ranks call it in the same order."""

    def __init__(self, group: dist.ProcessGroup | None, points_device: torch.device) -> None:
        self.group = group
        self.rank = dist.get_rank(group) if group is not None else 0
        self.size = dist.get_world_size(group) if group is not None else 1
        on_device = group is not None and "nccl" in dist.get_backend(group)
        self.device = points_device if on_device else torch.device("cpu")

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (a small Python object), in rank order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, error: Exception | None, facts: Mapping[str, Any]) -> None:
        """Raise on every rank if one has an error, or if their arguments differ: no rank waits in vain."""
        calls = self.gather((error, dict(facts)))
        for rank, (other, _) in enumerate(calls):
            if other is not None:
                raise other if rank == self.rank else type(other)(f"rank {rank}: {other}")
        for name in facts:
            values = [theirs[name] for _, theirs in calls]
            if any(value != values[0] for value in values):
                raise ValueError(f"{name} must be the same on every rank, got {values}")

    def best(self, leaders: Leaders) -> Winners:
        """The winner of every draw over all ranks: one small gather."""
        tables = self.exchange([*leaders.keys, *leaders.indices, leaders.largest])
        draws = len(leaders.keys)
        ranked = [min((row[draw], row[draws + draw], rank) for rank, row in enumerate(tables)) for draw in range(draws)]
        largest = [row[-1] for row in tables]
        return Winners(
            keys=tuple(key for key, _, _ in ranked),
            indices=tuple(int(index) for _, index, _ in ranked),
            owners=tuple(rank for _, _, rank in ranked),
            largest=float("nan") if any(value != value for value in largest) else max(largest),
        )

    def exchange(self, table: Sequence[float]) -> list[list[float]]:
        """Every rank's row of so many numbers; an index is exact in float64 up to 2^53."""
        if self.group is None:
            return [list(table)]
        own = torch.tensor(table, dtype=torch.float64, device=self.device)
        received = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(received, own, group=self.group)
        rows: list[list[float]] = torch.stack(received).tolist()
        return rows

    def rows(self, own: Tensor, owners: Sequence[int]) -> Tensor:
        """(T, D): row t as its owner holds it in `own`; one broadcast each."""
        if self.group is None:
            return own
        sent = own.to(self.device)
        for row, owner in enumerate(owners):
            dist.broadcast(sent[row], dist.get_global_rank(self.group, owner), group=self.group)
        return sent.to(own.device)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks; exact, and so independent of the cut, where the values are integers below 2^53."""
        if self.group is None:
            return values
        summed = values.to(self.device)
        dist.all_reduce(summed, group=self.group)
        return summed.to(values.device)
