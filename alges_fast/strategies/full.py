"""The upper line of a comparison: everything labelled."""

from __future__ import annotations

from typing import ClassVar

from alges_fast.strategies.base import Picks, Query, Strategy, register_strategy


@register_strategy
class Full(Strategy):
    """Trained once, on the whole pool; an experiment gives it one row and asks it nothing."""

    name: ClassVar[str] = "full"
    reference: ClassVar[str] = "Aklilu & Yeung 2022, Table 1"

    def query(self, query: Query) -> Picks:
        return Picks(tuple(query.unlabelled_ids()))
