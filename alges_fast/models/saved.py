"""Trained networks in safetensors files that say what they are, so that `--model FILE` needs nothing else.

A frozen model's file holds its head and the projection, not the trunk: that is named, with a digest of its weights. A
tuned one's holds all three.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from alges_fast.errors import UserError, one_line
from alges_fast.models import FROZEN, TUNED, build_model
from alges_fast.models.frozen import (
    PLAIN,
    FrozenHead,
    FrozenModel,
    Projection,
    Trunk,
    View,
    build_trunk,
    untrained_trunk,
)
from alges_fast.models.weights import PACKAGED, is_registered
from alges_fast.normalisation import Normalisation

KEY = "alges_fast"


@dataclass(frozen=True)
class Card:
    """What a file says of its network.

    Attributes:
        architecture, encoder, head_kernel: as for `build_model`; architecture `FROZEN` for a frozen encoder's head,
            `TUNED` where the encoder was trained too.
        encoder_weights: what the encoder began with; of a frozen one, where its weights are to be had.
        encoder_digest: of a frozen encoder's weights, as `weights.digest` makes it; else "".
        normalisation: of the images that it was trained on.
        image_size: side of their square.
        view: of a frozen or tuned encoder; None of others, and of heads saved when there was one view (`PLAIN`).
    """

    architecture: str
    encoder: str
    encoder_weights: str | None
    encoder_digest: str
    head_kernel: int
    normalisation: Normalisation
    image_size: int
    classes: Sequence[str]
    view: View | None = None

    @property
    def shown_size(self) -> int:
        """Side of the square that the network looks at: images of at least this size are of use to it."""
        return self.image_size * (1 if self.view is None else self.view.scale)

    @classmethod
    def of_frozen(
        cls, trunk: Trunk, view: View, image_size: int, classes: Sequence[str], architecture: str = FROZEN
    ) -> Card:
        """Of a head over this encoder."""
        return cls(
            architecture=architecture,
            encoder=trunk.name,
            encoder_weights=trunk.weights,
            encoder_digest=trunk.digest,
            head_kernel=1,
            normalisation=trunk.normalisation,
            image_size=image_size,
            classes=classes,
            view=view,
        )

    def as_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Raises ValueError, KeyError or TypeError where the text is no card."""
        given = json.loads(text)
        for name, kind in _KINDS.items():
            if not isinstance(given[name], kind):
                raise TypeError(f"{name} is {given[name]!r}")
        if not (1 <= given["head_kernel"] <= 99 and 1 <= given["image_size"] <= 1 << 14):
            raise ValueError("sizes of no network")
        given["normalisation"] = Normalisation(*(tuple(given["normalisation"][of]) for of in ("mean", "deviation")))
        view = given.get("view")
        return cls(**{**given, "classes": tuple(given["classes"]), "view": None if view is None else View(**view)})


_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("architecture", "encoder", "encoder_digest"), str),
    "encoder_weights": (str, type(None)),
    **dict.fromkeys(("head_kernel", "image_size"), int),
    "classes": list,
}


def serialized(model: nn.Module, card: Card) -> bytes:
    """A network and its card as a safetensors file; equal ones give equal bytes."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(state, {KEY: card.as_json()})  # one key: of several the order would be drawn


def read_card(path: Path) -> Card | None:
    """A file's card; None where it has none. Raises UserError: it is no safetensors file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            given = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}): save it again") from None
    try:
        return Card.from_json(given[KEY])
    except (KeyError, ValueError, TypeError):
        return None


def load(path: Path, card: Card, encoder_weights: str | None = None) -> nn.Module:
    """The network of a file, images (B, 3, S, S) to logits, in eval mode.

    Args:
        encoder_weights: where a frozen encoder's weights are; the card's own word counts for the packaged ones alone,
            since a file of a stranger's would else choose what is fetched or opened.

    Raises:
        UserError: the weights do not fit, or a frozen encoder's are others than the head was trained on; an encoder
            that is no name of segmentation-models-pytorch or timm.
    """
    if not is_registered(card.encoder):
        raise UserError(
            f"{path}: its encoder {card.encoder!r} is no name of segmentation-models-pytorch or timm: take files from "
            "whom you trust, or give the whole model (.pt2)"
        )
    state = _of_network(safetensors.torch.load_file(path))
    try:
        if card.architecture == FROZEN:
            if encoder_weights is None and card.encoder_weights != PACKAGED:
                raise UserError(
                    f"{path}: its encoder's weights are {card.encoder_weights!r}, and what is fetched or opened is for "
                    "you to say: give them with --encoder_weights"
                )
            return _frozen(path, card, state, encoder_weights or PACKAGED)
        if card.architecture == TUNED:
            return _tuned(card, state)
        model = build_model(
            card.architecture, card.encoder, num_classes=len(card.classes), head_kernel=card.head_kernel, seed=0
        )
        model.load_state_dict(state)
        return model.eval()
    except (RuntimeError, KeyError) as error:
        why = one_line(error)[:200]
        raise UserError(f"{path}: not the weights of the network that it names ({why}): save it again") from None


def _frozen(path: Path, card: Card, state: Mapping[str, Tensor], encoder_weights: str) -> nn.Module:
    trunk = build_trunk(card.encoder, encoder_weights)
    if trunk.digest != card.encoder_digest:
        raise UserError(
            f"{path}: its head was trained on encoder {card.encoder} with {card.encoder_weights!r} weights of digest "
            f"{card.encoder_digest[:12]}, but {encoder_weights!r} weights have digest {trunk.digest[:12]}: give those "
            "with --encoder_weights"
        )
    head = _head(card, trunk, state, "projection")
    head.load_state_dict(state)
    return FrozenModel(trunk, head, card.image_size).eval()


def _tuned(card: Card, state: Mapping[str, Tensor]) -> nn.Module:
    trunk = untrained_trunk(card.encoder, card.normalisation)
    model = FrozenModel(trunk, _head(card, trunk, state, "head.projection"), card.image_size)
    model.load_state_dict(state)
    return model.eval()


def _head(card: Card, trunk: Trunk, state: Mapping[str, Tensor], of: str) -> FrozenHead:
    """A head over the projection of that name; its own weights are to be loaded."""
    projection = Projection(state[f"{of}.weight"], state[f"{of}.bias"], trunk.channels, card.view or PLAIN)
    return FrozenHead(projection, len(card.classes), seed=0)


def _of_network(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what a strategy adds around a network to train it: DEAL's branch."""
    prefix = "segmentation."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return own or dict(state)
