"""The upper line of a comparison: everything labelled."""

from __future__ import annotations

from typing import ClassVar

from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.registry import register_strategy


@register_strategy
class Full(Strategy):
    """Trained once, on the whole pool; an experiment gives it one row and asks it nothing."""

    name: ClassVar[str] = "full"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Table 1"
    needs_model: ClassVar[bool] = False
    takes_whole_pool: ClassVar[bool] = True

    def rate(self, query: Query) -> Rating:
        raise ValueError(f"strategy: {self.name!r} takes the whole pool, so there is nothing to choose")
