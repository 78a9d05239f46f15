"""Largest relative error of image-level embeddings against autograd, architecture by architecture.

    python bench/architectures.py        # prints the table, writes bench/results/architectures.json

Random weights, float32 and float64, two losses, three images; the error of an image is the largest difference over the
largest entry of autograd's gradient. Autograd in float64 is the reference for both types, so its own float32 error is
beside ours.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import Tensor, nn

from alges_fast import LastLayer
from alges_fast.losses import Loss, cross_entropy, cross_entropy_with_dice

CLASSES, SIDE, IMAGES = 13, 128, 3
RESULTS = Path(__file__).parent / "results" / "architectures.json"

SMP = (
    *("Unet", "UnetPlusPlus", "MAnet", "Linknet"),
    *("FPN", "DeepLabV3", "DeepLabV3Plus", "PSPNet", "PAN", "UPerNet", "Segformer"),
)
TORCHVISION = ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large")


def models() -> dict[str, Callable[[], nn.Module]]:
    """Builders by name, all with random weights."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name in SMP:
        found[f"smp {name}"] = lambda name=name: getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES)
    found["smp DPT"] = lambda: smp.DPT(
        "tu-vit_tiny_patch16_224", encoder_weights=None, classes=CLASSES, dynamic_img_size=True
    )
    for name in TORCHVISION:
        build = getattr(torchvision.models.segmentation, name)
        found[f"torchvision {name}"] = lambda build=build: build(
            weights=None, weights_backbone=None, num_classes=CLASSES
        )
    return found


def measure(build: Callable[[], nn.Module]) -> dict[str, object]:
    torch.manual_seed(0)
    model = build().eval()
    images = torch.randn(IMAGES, 3, SIDE, SIDE)
    double = copy.deepcopy(model).double()
    layer, exact_layer = LastLayer.find(model, images[:1]), LastLayer.find(double, images[:1].double())
    (tail,) = layer._tails.values()
    row: dict[str, object] = {
        "layer": layer.name,
        "weight": list(layer.module.weight.shape),
        "tail": "nothing" if tail.plain else tail.description,
        "float32": 0.0,
        "float64": 0.0,
        "autograd_float32": 0.0,
    }
    for loss in (None, cross_entropy_with_dice):
        reference = autograd(double, exact_layer, images.double(), loss or cross_entropy)
        results = {
            "float32": layer.pixel_gradients(images, outputs=("image",), loss=loss).image,
            "float64": exact_layer.pixel_gradients(images.double(), outputs=("image",), loss=loss).image,
            "autograd_float32": autograd(model, layer, images, loss or cross_entropy),
        }
        for name, value in results.items():
            assert value is not None
            error = (value - reference).abs().flatten(1).amax(1) / reference.abs().flatten(1).amax(1)
            row[name] = max(float(row[name]), float(error.max()))  # type: ignore[arg-type]
    return row


def autograd(model: nn.Module, layer: LastLayer, images: Tensor, loss: Loss) -> Tensor:
    """The whole model forward and back, one image at a time."""
    rows = []
    for image in images:
        logits = model(image[None])
        logits = logits["out"] if isinstance(logits, dict) else logits
        rows.append(torch.autograd.grad(loss(logits, logits.argmax(1)), layer.module.weight)[0])
    return torch.stack(rows)


def main() -> None:
    rows = {}
    print("| model | last layer | weight | after it | float64 | float32 | autograd in float32 |")
    print("|---|---|---|---|---|---|---|")
    for name, build in models().items():
        rows[name] = row = measure(build)
        errors = " | ".join(f"{row[key]:.0e}" for key in ("float64", "float32", "autograd_float32"))
        weight = " x ".join(map(str, row["weight"]))  # type: ignore[call-overload]
        print(f"| {name} | `{row['layer']}` | {weight} | {row['tail']} | {errors} |", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
