"""`pixel_gradients`: the public functions, and what they promise.

outputs.py has what can be asked for, operands.py what is given and the schema, schema.py the registration, dispatch.py
who runs it; the bodies are in reference.py, cpu.py, triton_kernels.py and cuda.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from alges_fast.ops.operands import Operands, mask_of
from alges_fast.ops.outputs import OUTPUTS, PixelGradients, check_outputs
from alges_fast.ops.schema import op


def pixel_gradients(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: Sequence[str] = ("image", "semantic"),
    logits: Tensor | None = None,
    residual: Tensor | None = None,
    valid: Tensor | None = None,
    backend: str | None = None,
) -> PixelGradients:
    """Gradient embeddings and uncertainty scores of a segmentation model's last layer, in one pass over its input.

    With s = weight * features + bias, p = softmax(s), ŷ = argmax s (ties: the lowest class) and r = p - onehot(ŷ), the
    gradient of a pixel's cross-entropy against the model's own prediction is r ⊗ z̃, z̃ the kernel-sized patch of
    features. It is rank one, so its Frobenius norm is ‖r‖ ‖z̃‖, and no (pixels x K x d) tensor is ever stored.

    Args:
        features: (B, d, *spatial), the last convolution's input, with 1, 2 or 3 spatial axes; float16, bfloat16,
            float32 or float64; any strides, channels-last included.
        weight: (K, d) or (K, d, *kernel), odd kernel, stride 1, zero padding kernel // 2; features' type or float32.
        bias: (K,), same types.
        outputs: names of the fields of `PixelGradients` to compute.
        logits: (B, K, *spatial), used instead of weight * features + bias; features' type or float32.
        residual: (B, K, *spatial), dℓ/dlogits of each pixel for another loss; default is r above. Same types. It enters
            `image`, `semantic`, `semantic_vector` and `norm_map`; the other outputs are of p and z all the same.
        valid: (B, *spatial) bool, the pixels that count; default all.
        backend: "reference", "cpu", "triton" or "cuda"; default the fastest that can run these inputs.

    Returns:
        PixelGradients. Sums and norms are float32 (float64 for float64 features), `class_pixels` int64. No gradient
        flows. `image` equals what autograd gives for the mean cross-entropy over valid pixels against the model's own
        prediction.

    Raises:
        ValueError: a wrong shape, device, output or backend name, or a named backend that cannot run here, and why.
        TypeError: a wrong type.

    Reference:
        Aklilu and Yeung, "ALGES: Active Learning with Gradient Embeddings for Semantic Segmentation of Laparoscopic
        Surgical Images", MLHC 2022, Eq. 4 and 6.

    Example:
        >>> features, weight = torch.randn(2, 16, 32, 32), torch.randn(13, 16)
        >>> embeddings = pixel_gradients(features, weight, outputs=("image", "semantic", "entropy"))
        >>> embeddings.image.shape, embeddings.semantic.shape, embeddings.entropy.shape
        (torch.Size([2, 13, 16]), torch.Size([2, 13]), torch.Size([2]))
    """
    check_outputs(outputs)
    operands = Operands(features, weight, bias, logits, residual, valid, mask_of(outputs), backend or "auto")
    return _outputs(operands)


def hidden_pixel_gradients(
    inputs: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: Sequence[str] = ("image", "semantic"),
    valid: Tensor | None = None,
    backend: str | None = None,
) -> PixelGradients:
    """`pixel_gradients` of features = relu(hidden_weight * inputs + hidden_bias), which are stored nowhere.

    For a head over features that are kept: what a pixel's features are made of is read once, and they stay in the cache
    from the hidden layer to the last sum. An infinity among the inputs is a NaN among the features.

    Args:
        inputs: (B, c, *spatial), as the features of `pixel_gradients`. A pixel's channels had better lie together.
        hidden_weight, hidden_bias: (d, c) or (d, c, 1, ...), and (d,) or None; inputs' type or float32.
        weight: (K, d) or (K, d, 1, ...).
        bias, outputs, valid: as for `pixel_gradients`.
        backend: "cpu" or "reference"; default the first that can run here.

    Raises:
        ValueError, TypeError: as `pixel_gradients`; a kernel larger than 1.
    """
    check_outputs(outputs)
    call = Operands(inputs, weight, bias, None, None, valid, mask_of(outputs), backend or "auto")
    return _outputs(call._replace(hidden_weight=hidden_weight, hidden_bias=hidden_bias))


class WindowSums(NamedTuple):
    """What `hidden_windows` returns."""

    image: Tensor
    """(B, R C, K, d): mean over each window of r ⊗ z (Eq. 4 restricted to it)."""
    outline: Tensor
    """(B, R C): how many neighbours inside the window, side by side or one above the other, differ in ŷ."""


def hidden_windows(
    inputs: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    regions: tuple[int, int] = (1, 1),
    backend: str | None = None,
) -> WindowSums:
    """The embedding of `hidden_pixel_gradients`, and the predicted outline, of every window of a grid, in one pass.

    On the CPU a window costs no more than its pixels do in a whole image, but for writing down its sums: they are done
    window by window, wherever in the grid they lie.

    Args:
        inputs: (B, c, height, width), otherwise as for `hidden_pixel_gradients`.
        hidden_weight, hidden_bias, weight, bias: as for it.
        regions: rows R and columns C of the grid, as in `windows.cell_boxes`.
        backend: "cpu", for inputs whose channels lie together, or "reference"; default the first that can run here.

    Raises:
        ValueError, TypeError: as `hidden_pixel_gradients`; a grid finer than the inputs.
    """
    operands = Operands(inputs, weight, bias, outputs=mask_of(("image",)), backend=backend or "auto")
    operands = operands._replace(hidden_weight=hidden_weight, hidden_bias=hidden_bias, regions=regions)
    operands.validate()
    return WindowSums(*op(*operands))


def _outputs(operands: Operands) -> PixelGradients:
    operands.validate()
    results = iter(op(*operands))
    return PixelGradients(*[next(results) if operands.outputs >> bit & 1 else None for bit in range(len(OUTPUTS))])
