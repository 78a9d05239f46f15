"""Whole pools of images, scored at the speed of the model's forward pass."""

from alges_fast.pool.embed import Progress, embed_pool
from alges_fast.pool.errors import CannotContinue, FileInUse, RowsNotWritten
from alges_fast.pool.features import Features, frozen_features
from alges_fast.pool.rows import PoolEmbeddings
from alges_fast.pool.source import Id, Pool, pool_ids, pool_sizes
from alges_fast.pool.transfer import PRECISIONS

__all__ = [
    "PRECISIONS",
    "CannotContinue",
    "Features",
    "FileInUse",
    "Id",
    "Pool",
    "PoolEmbeddings",
    "Progress",
    "RowsNotWritten",
    "embed_pool",
    "frozen_features",
    "pool_ids",
    "pool_sizes",
]
