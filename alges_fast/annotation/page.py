"""The page to look through a selection: one self-contained file, for any screen, usable by keyboard alone."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from PIL import Image

from alges_fast.annotation.config import SelectConfig
from alges_fast.annotation.pictures import encoded


@dataclass(frozen=True)
class Card:
    """One pick: its row of picks.csv and its pictures by view ("frame", "gradient", "prediction")."""

    row: Mapping[str, Any]
    views: Mapping[str, Image.Image]


def selection_page(
    config: SelectConfig,
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    cards: Sequence[Card],
    n_picks: int,
) -> str:
    """index.html of these cards, the first of `n_picks`."""
    shown = [
        {
            "row": card.row,
            "views": {
                view: f"data:image/webp;base64,{base64.b64encode(encoded(picture, 'webp', quality=78)).decode()}"
                for view, picture in card.views.items()
            },
            "size": next(iter(card.views.values())).size,
        }
        for card in cards
    ]
    report, here = resources.files("alges_fast.report"), resources.files("alges_fast.annotation")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string((here / "page.html").read_text()).render(
        config=config,
        classes=[(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in zip(classes, colours, strict=True)],
        cards=shown,
        views=[view for view in ("frame", "gradient", "prediction") if any(view in card.views for card in cards)],
        n_picks=n_picks,
        style=(report / "page.css").read_text() + (here / "page.css").read_text(),
        script=(here / "page.js").read_text(),
    )
