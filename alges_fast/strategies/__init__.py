"""Query strategies: which frames, or windows of frames, to annotate next.

base.py       what a strategy is given and answers: Query, Rating, Strategy
registry.py   strategies by name, the package's and a user's own
rating.py     ways to draw: by score, by seeding, in an order
embedding.py  what a model says of the candidates
Each other file is a family of strategies. This folder is listed, so a new file is all it takes.
"""

import pkgutil
from importlib import import_module

from alges_fast.strategies.base import Candidate, Query, Rating, Strategy, Taken
from alges_fast.strategies.embedding import candidate_images, embed, mean_features
from alges_fast.strategies.rating import by_order, by_score, by_seeding, scores_of
from alges_fast.strategies.registry import get_strategy, register_strategy, strategy_names
from alges_fast.windows import frame_of

__all__ = [
    "Candidate",
    "Query",
    "Rating",
    "Strategy",
    "Taken",
    "by_order",
    "by_score",
    "by_seeding",
    "candidate_images",
    "embed",
    "frame_of",
    "get_strategy",
    "mean_features",
    "register_strategy",
    "scores_of",
    "strategy_names",
]

for _module in sorted(each.name for each in pkgutil.iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")  # which registers its strategies
