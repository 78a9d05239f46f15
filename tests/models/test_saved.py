"""Files of trained networks: they say what they are, and a frozen one refuses weights that it was not trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alges_fast.errors import UserError
from alges_fast.models import build_model, saved
from alges_fast.models.deal import DealModel
from alges_fast.models.frozen import PLAIN, RAISED, FrozenHead, FrozenModel, fit_projection
from alges_fast.models.saved import FROZEN, Card, load, read_card, serialized
from alges_fast.normalisation import HALF

from .small_trunk import small_trunk

CARD = Card("fpn", "mobilenet_v2", None, "", 3, HALF, 64, ("sky", "car, or van", "tree"))


def network() -> torch.nn.Module:
    return build_model("fpn", "mobilenet_v2", num_classes=3, head_kernel=3, seed=4).eval()


def test_a_network_and_its_card_come_back(tmp_path: Path) -> None:
    """Of DEAL's network the one that segments."""
    path, model, images = tmp_path / "model.safetensors", network(), torch.randn(1, 3, 64, 64)
    for stored in (model, DealModel(network(), 3, seed=0).eval()):
        path.write_bytes(serialized(stored, CARD))
        assert read_card(path) == CARD
        assert torch.equal(load(path, CARD)(images), model(images))
    assert serialized(model, CARD) == serialized(network(), CARD)


@pytest.fixture(params=[None, RAISED], ids=["before_views", "raised"])
def frozen(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Card, FrozenModel]:
    monkeypatch.setattr(saved, "build_trunk", lambda encoder, weights: small_trunk(seed=int(weights)))
    trunk = small_trunk(seed=7)
    projection = fit_projection(torch.randn(300, sum(trunk.channels)), trunk.channels, request.param or PLAIN)
    model = FrozenModel(trunk, FrozenHead(projection, 3, seed=1), CARD.image_size).eval()
    card = replace(CARD, architecture=FROZEN, encoder="tu-resnet18", encoder_weights="7", encoder_digest=trunk.digest)
    card = replace(card, view=request.param)
    path = tmp_path / "frozen.safetensors"
    path.write_bytes(serialized(model.head, card))
    return path, card, model


def test_a_frozen_models_file_makes_the_whole_of_it(frozen: tuple[Path, Card, FrozenModel]) -> None:
    path, card, model = frozen
    images = torch.randn(2, 3, 32, 32)
    read = read_card(path)
    assert read == card
    assert torch.equal(load(path, read, "7")(images), model(images))


def test_a_card_of_before_views_is_read(frozen: tuple[Path, Card, FrozenModel]) -> None:
    _, card, _ = frozen
    text = json.loads(card.as_json())
    del text["view"]
    assert Card.from_json(json.dumps(text)) == replace(card, view=None)


def test_a_file_does_not_say_what_is_fetched_or_opened(frozen: tuple[Path, Card, FrozenModel]) -> None:
    path, card, _ = frozen
    with pytest.raises(UserError, match=r"frozen\.safetensors: its encoder's weights are '7'.*--encoder_weights"):
        load(path, card)
    for encoder in ("tu-hf-hub:someone/evil", "tu-local-dir:/tmp/evil", "smp-hub:x", "../x", "tu-resnet18/../x", ""):
        for architecture in ("unet", FROZEN):
            with pytest.raises(UserError, match=r"is no name of segmentation-models-pytorch or timm"):
                load(path, replace(card, encoder=encoder, architecture=architecture), "7")


@pytest.mark.parametrize(
    "wrong",
    [{"encoder": 5}, {"classes": "abc"}, {"head_kernel": 10**9}, {"image_size": "224"}, {"encoder_weights": []}],
)
def test_a_card_of_other_kinds_is_none(tmp_path: Path, wrong: dict[str, object]) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps({**json.loads(CARD.as_json()), **wrong})
    save_file({"weight": torch.zeros(2)}, path, {"alges_fast": text})
    assert read_card(path) is None


def test_other_weights_are_refused_by_both_names(frozen: tuple[Path, Card, FrozenModel]) -> None:
    path, card, model = frozen
    with pytest.raises(UserError) as caught:
        load(path, card, encoder_weights="8")
    for told in (str(path), "'7' weights", "'8' weights", model.trunk.digest[:12], small_trunk(8).digest[:12]):
        assert told in str(caught.value)


def test_what_has_no_card_or_is_torn_or_does_not_fit_is_told(tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({"weight": torch.zeros(2)}, bare)
    assert read_card(bare) is None
    with pytest.raises(UserError, match="not the weights of the network that it names"):
        load(bare, CARD)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(bare.read_bytes()[:20])
    with pytest.raises(UserError, match=r"torn\.safetensors: not a whole safetensors file"):
        read_card(torn)
