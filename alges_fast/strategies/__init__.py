"""Query strategies: which frames to annotate next.

base.py holds what a strategy is given and returns, and the registry; each other file is a family of strategies.
"""

from alges_fast.strategies.base import Picks, Query, Strategy, get_strategy, register_strategy, strategy_names

# Importing a family registers its strategies; this order is the one in which they are listed.
from alges_fast.strategies import random, uncertainty, coreset, deal, alges, released, full  # noqa: F401  # isort: skip

__all__ = ["Picks", "Query", "Strategy", "get_strategy", "register_strategy", "strategy_names"]
