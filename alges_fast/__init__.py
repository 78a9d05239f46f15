"""alges_fast: active learning for semantic segmentation from fused per-pixel gradient embeddings."""

from alges_fast._native import native_status
from alges_fast.ops import PixelGradients, pixel_gradients

__all__ = ["PixelGradients", "native_status", "pixel_gradients"]
__version__ = "0.1.0"
