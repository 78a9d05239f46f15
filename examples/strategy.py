"""A strategy of your own: one class, for whole frames and for windows, for the commands and for Python. Seconds.

python examples/strategy.py
python -m alges_fast.run --strategies random,examples/strategy.py:Unsure --seeds 0,1,2 --out runs/unsure
"""

import torch
from torch import nn

from alges_fast import select
from alges_fast.strategies import Query, Rating, Strategy, by_score
from alges_fast.strategies.embedding import embed


class Unsure(Strategy):
    """The largest share of pixels that the model would teach itself wrongly about: the gradients' norm, by pixel."""

    name = "unsure"
    reference = "this file"

    def rate(self, query: Query) -> Rating:
        found = embed(query, ("semantic",))  # a row per candidate of this process, whether frame or window
        scores = found.outputs["semantic"].sum(1).tolist()
        candidates = [query.candidates[position] for position in found.positions]
        return by_score(query, dict(zip(candidates, scores, strict=True)))


if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    mine = f"{__file__}:Unsure"
    pool = [(f"video{i // 10}_{i:02d}", torch.rand(3, 32, 32)) for i in range(30)]
    print("frames: ", select(model, pool, 5, strategy=mine).ids)
    for window in select(model, pool, pixels=4 * 8 * 8, regions=(4, 4), strategy=mine).ids:
        print("window: ", window)
