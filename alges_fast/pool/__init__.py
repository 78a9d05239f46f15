"""Whole pools of images, scored at the speed of the model's forward pass."""

from alges_fast.pool.embed import (
    PRECISIONS,
    Id,
    Pool,
    PoolEmbeddings,
    Progress,
    embed_pool,
    pool_ids,
    pool_sizes,
)

__all__ = ["PRECISIONS", "Id", "Pool", "PoolEmbeddings", "Progress", "embed_pool", "pool_ids", "pool_sizes"]
