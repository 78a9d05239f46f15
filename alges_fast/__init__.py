"""alges_fast: active learning for semantic segmentation from fused per-pixel gradient embeddings."""

from alges_fast._native import native_status
from alges_fast.last_layer import LastLayer
from alges_fast.ops import PixelGradients, pixel_gradients
from alges_fast.pool import PoolEmbeddings, embed_pool, frozen_features
from alges_fast.seeding import Seeding, k_center_greedy, kmeans_plusplus
from alges_fast.selection import Selection, select
from alges_fast.windows import Window

__all__ = [
    "LastLayer",
    "PixelGradients",
    "PoolEmbeddings",
    "Seeding",
    "Selection",
    "Window",
    "embed_pool",
    "frozen_features",
    "k_center_greedy",
    "kmeans_plusplus",
    "native_status",
    "pixel_gradients",
    "select",
]
__version__ = "0.1.0"
