"""The last layer of any segmentation model: which layer makes the logits, and its gradient embeddings."""

from alges_fast.last_layer.boxes import OUTLINE
from alges_fast.last_layer.layer import LastLayer
from alges_fast.last_layer.running import evaluating, logits_of, unwrapped

__all__ = ["OUTLINE", "LastLayer", "evaluating", "logits_of", "unwrapped"]
