"""alges_fast: active learning for semantic segmentation from fused per-pixel gradient embeddings."""

from alges_fast._native import native_status
from alges_fast.last_layer import LastLayer
from alges_fast.ops import PixelGradients, pixel_gradients
from alges_fast.pool import PoolEmbeddings, embed_pool

__all__ = ["LastLayer", "PixelGradients", "PoolEmbeddings", "embed_pool", "native_status", "pixel_gradients"]
__version__ = "0.1.0"
