"""The page to look through a selection: one self-contained file, for any screen, usable by keyboard alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from PIL import Image

from alges_fast.pages import data_address, render
from alges_fast.selection import Unit
from alges_fast.windows import Window

WEBP = {"quality": 78, "method": 1}


class Shown(NamedTuple):
    """A picture in the page: its address, which holds it, and its width and height."""

    address: str
    size: tuple[int, int]


def shown(picture: Image.Image) -> Shown:
    """The picture as the page has it."""
    return Shown(data_address(picture, **WEBP), picture.size)


@dataclass(frozen=True)
class Card:
    """One frame with picks.

    id: of the frame.
    picks: positions of its picks in the rows of picks.csv.
    windows: the picked ones of a frame that was cut up, in the same order; else empty.
    size: width and height of the frame.
    share: of the budget of windows; None for a whole frame.
    views: its pictures of one size, "frame", "gradient", "prediction".
    """

    id: str
    picks: Sequence[int]
    windows: Sequence[Window]
    size: tuple[int, int]
    share: float | None
    views: Mapping[str, Shown]


@dataclass(frozen=True)
class Asked:
    """What the page says of how picks came about.

    model: its name; None where none chose. budget: what it is counted in, "pixels" or "outline". considered: how many
    frames the strategy heard of, where that is not all. blind: whether it looked at no picture, as random picks do.
    """

    strategy: str
    seed: int
    images: str
    model: str | None
    regions: str | None
    budget: Unit = "pixels"
    considered: str = ""
    blind: bool = False


def selection_page(
    asked: Asked,
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    cards: Sequence[Card],
    rows: Sequence[Mapping[str, Any]],
    n_frames: int,
    budget: int | None,
    left_out: Sequence[str],
    sheets: Mapping[str, Shown],
) -> str:
    """index.html of these cards.

    Args:
        asked, classes, colours: how the picks came about; a colour per class.
        cards: the frames to show, the first of `n_frames`.
        n_frames: how many frames have picks.
        budget: what there was for windows; None where whole frames were picked.
        left_out: why files of the pool could not be used, a line each.
        sheets: by name, those that windows are annotated on.
    """
    in_page = [
        {
            "id": card.id,
            "rows": [rows[number] for number in card.picks],
            "windows": card.windows,
            "share": card.share,
            "frame": card.size,
            "views": {view: picture.address for view, picture in card.views.items()},
            "size": next(iter(card.views.values())).size,
        }
        for card in cards
    ]
    return render(
        "alges_fast.annotation",
        "page",
        title=f"{len(rows)} {'frames' if budget is None else f'windows of {n_frames} frames'} to annotate",
        kicker=f"{asked.strategy}, seed {asked.seed}",
        asked=asked,
        classes=[(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in zip(classes, colours, strict=True)],
        cards=in_page,
        views=[view for view in ("frame", "gradient", "prediction") if any(view in card.views for card in cards)],
        ranks={row["id"]: row["rank"] for row in rows},
        n_frames=n_frames,
        sheets=[(name, *picture) for name, picture in sheets.items()],
        budget=budget,
        outline=sum(float(row["outline"]) for row in rows) if asked.budget == "outline" else None,
        left_out=left_out,
        script=(resources.files("alges_fast.annotation") / "page.js").read_text(encoding="utf-8"),
    )
