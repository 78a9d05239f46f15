"""A strategy that picks what another run picked, so that one network is trained on what another chose (a proxy).

    ALGES_FAST_REPLAY=RUN/alges-frugal@16x16 python -m alges_fast.run ... --strategies bench/replay.py:Replay@16x16

RUN/STRATEGY/seedS/roundR/picks.json of a finished run with the same data, seeds, `--init_size` and `--image_size` are
read in order of their rounds; what a query may spend is taken from where the last one left off, so the queries of the
two runs may differ in size.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from alges_fast.errors import UserError
from alges_fast.strategies import Query, Rating, Strategy, by_order
from alges_fast.windows import named


class Replay(Strategy):
    """Candidates in the order in which the run at `ALGES_FAST_REPLAY` picked them, then all others."""

    name = "replay"
    reference = "selection by proxy, Coleman et al., ICLR 2020"
    needs_model = False
    reads_images = False

    def rate(self, query: Query) -> Rating:
        folder = Path(os.environ.get("ALGES_FAST_REPLAY", "")) / f"seed{query.seed}"
        files = sorted(folder.glob("round*/picks.json"))
        if not files:
            raise UserError(f"no picks under {folder}: set ALGES_FAST_REPLAY to the folder of a run's strategy")
        picked = [named(text) for file in files for text in json.loads(file.read_text())["ids"]]
        free, first = frozenset(query.candidates), frozenset(picked)
        others = [candidate for candidate in query.candidates if candidate not in first]
        return by_order(query, [*(candidate for candidate in picked if candidate in free), *others])
