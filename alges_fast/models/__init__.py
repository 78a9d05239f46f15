"""Segmentation networks by name: any architecture and encoder of segmentation-models-pytorch."""

from __future__ import annotations

import torch
from torch import nn

from alges_fast.errors import UserError, nearest, one_line
from alges_fast.models.weights import encoder_with_tag, fetched, load_weights, read_weights

__all__ = ["FROZEN", "TUNED", "build_model", "check_image_size"]

FROZEN = "frozen"
"""The architecture that is no network of segmentation-models-pytorch but a head over a frozen encoder (frozen.py)."""
TUNED = "tuned"
"""The same network, its encoder trained too, from where the head's training ended."""


def build_model(
    architecture: str = "unet",
    encoder: str = "resnet18",
    *,
    encoder_weights: str | None = None,
    num_classes: int,
    head_kernel: int = 1,
    seed: int,
) -> nn.Module:
    """A network that maps images (B, 3, S, S) float32 to logits (B, num_classes, S, S).

    Args:
        architecture: a name of segmentation-models-pytorch, such as "unet", "fpn" or "segformer".
        encoder: a name of its encoders, such as "resnet18".
        encoder_weights: pretrained weights of the encoder: "packaged", a name such as "imagenet", or a file (see
            weights.py); None draws them at random.
        num_classes: K, at least 2.
        head_kernel: size of the last convolution, odd. The paper's is 1; that of smp's U-Net is 3.
        seed: fixes every random weight. No global generator is read or advanced.

    Raises:
        UserError: an unknown name, an unusable combination, or pretrained weights that cannot be had.
    """
    if num_classes < 2:
        raise UserError(f"the data set has {num_classes} class(es): segmentation needs at least 2")
    if head_kernel < 1 or head_kernel % 2 == 0:
        raise UserError(f"head_kernel {head_kernel} is not an odd size: use 1 (the paper's) or 3")
    import segmentation_models_pytorch as smp  # here: strategies import this package where smp need not be installed

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    if architecture in (FROZEN, TUNED):
        raise UserError(
            f"architecture {architecture} is a head over an encoder: its file must be one that alges_fast saved"
        )
    if architecture.lower() not in architectures:
        known = sorted([*architectures, FROZEN, TUNED])
        near = nearest(architecture.lower(), known)
        raise UserError(f"architecture {architecture!r} is unknown{near}: use one of {', '.join(known)}")
    if not encoder.startswith("tu-") and encoder not in (encoders := smp.encoders.get_encoder_names()):
        raise UserError(
            f"encoder {encoder!r} is unknown{nearest(encoder, encoders)}; those of timm have the prefix tu-"
        )
    state = read_weights(encoder, encoder_weights)
    name = fetched(encoder, encoder_weights)
    weights = True if name is not None and encoder.startswith("tu-") else name
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of all GPUs too
        try:
            model: nn.Module = smp.create_model(
                architecture, encoder_with_tag(encoder, name), weights, classes=num_classes
            )
        except Exception as error:
            if name is None:
                why = f"architecture {architecture} cannot be built with encoder {encoder}: {one_line(error)}"
            else:
                why = (
                    f"no {name!r} weights for encoder {encoder} ({one_line(error)}): check their name and the network, "
                    "copy ~/.cache/huggingface from where they are, give a file, or leave --encoder_weights out"
                )
            raise UserError(why) from error
        _set_head_kernel(model, head_kernel)
    if state is not None:
        assert isinstance(model.encoder, nn.Module)
        load_weights(model.encoder, state, str(encoder_weights))
    return model


def check_image_size(model: nn.Module, image_size: int) -> None:
    """Run one blank image. Raises UserError: the model does not take images of this size."""
    training = model.training
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"image_size {image_size} does not suit this model: {one_line(error)}") from error
    finally:
        model.train(training)
    if logits.shape[2:] != (image_size, image_size):
        grid = f"{logits.shape[2]} x {logits.shape[3]}"
        raise UserError(f"this model gives {grid} logits for image_size {image_size}: choose another size")


def _set_head_kernel(model: nn.Module, kernel: int) -> None:
    """Replace the last convolution where its size differs; drawn anew by torch's own initialisation."""
    head = model.segmentation_head
    assert isinstance(head, nn.Module)
    convolutions = [(name, module) for name, module in head.named_modules() if isinstance(module, nn.Conv2d)]
    name, last = convolutions[-1]
    if last.kernel_size == (kernel, kernel):
        return
    biased = last.bias is not None
    replacement = nn.Conv2d(last.in_channels, last.out_channels, kernel, padding=kernel // 2, bias=biased)
    parent, _, child = name.rpartition(".")
    setattr(head.get_submodule(parent), child, replacement)
