"""Pictures of picked frames: gradient mass over a frame, predicted classes over a frame, a sheet of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window

_SHEET_COLUMNS = 5
_THUMBNAIL = 260  # pixels across
_MARGIN, _CAPTION = 12, 22
_INFERNO = "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 "
_INFERNO += "d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
"""The colour map of that name (N. J. Smith, S. van der Walt and E. Firing, CC0), evenly spaced: importing matplotlib
takes longer than drawing the frames of a round."""
_COLOURS = np.array([list(bytes.fromhex(colour)) for colour in _INFERNO.split()])
_NORM_COLOURS = np.array(
    [np.interp(np.linspace(0, len(_COLOURS) - 1, 256), range(len(_COLOURS)), c) for c in _COLOURS.T], np.float32
)


def with_norm_map(image: NDArray[np.uint8], norm_map: NDArray[np.float32]) -> Image.Image:
    """The frame in grey with its gradient mass in colour, on a scale of its own: black none, yellow the 99.5th
    percentile."""
    top = max(float(np.percentile(norm_map, 99.5)), float(np.finfo(np.float32).tiny))
    share = np.clip(norm_map / top, 0, 1)
    opacity, at = 0.35 + 0.6 * share, (share * 255).round().astype(np.uint8)
    beneath = (1 - opacity) * (image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))
    return _of_planes([beneath + opacity * colours[at] for colours in _NORM_COLOURS])


def with_mask(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """The frame under its predicted classes; as it is where none is predicted."""
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    none = mask == UNLABELLED
    planes = zip(np.moveaxis(image, 2, 0), 0.55 * colours.T, strict=True)
    return _of_planes([np.where(none, plane, 0.45 * plane + shade[mask]) for plane, shade in planes])


def _of_planes(planes: Sequence[NDArray[Any]]) -> Image.Image:
    """The picture of red, green and blue (H, W), which numpy computes in half the time of (H, W, 3)."""
    return Image.merge("RGB", [Image.fromarray(plane.astype(np.uint8)) for plane in planes])


def thumbnail(picture: Image.Image, width: int, *, gap: float = 2.0) -> Image.Image:
    """The picture at this width in pixels, or its own where that is smaller; its shape kept. Where it is more than
    `gap` times as wide, means of whole pixels are taken first."""
    width = min(width, picture.width)
    size = width, max(1, round(picture.height * width / picture.width))
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=gap)


def outlined(picture: Image.Image, windows: Sequence[Window]) -> Image.Image:
    """The picture, darker outside these windows of it, each with an outline."""
    shown = Image.new("L", picture.size, 110)
    for window in windows:
        shown.paste(255, (window.x, window.y, window.x + window.width, window.y + window.height))
    outlined = Image.composite(picture, Image.new("RGB", picture.size), shown)
    pen, width = ImageDraw.Draw(outlined), max(1, picture.width // 240)
    for window in windows:
        corners = (window.x, window.y, window.x + window.width - 1, window.y + window.height - 1)
        pen.rectangle(corners, outline=(255, 212, 0), width=width)
    return outlined


def contact_sheet(rows: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Captioned pictures in order, five across."""
    pictures = [(caption, thumbnail(picture, _THUMBNAIL)) for caption, picture in rows]
    cell_height = max(picture.height for _, picture in pictures) + _CAPTION + _MARGIN
    columns = min(_SHEET_COLUMNS, len(pictures))
    n_rows = -(-len(pictures) // columns)
    size = columns * (_THUMBNAIL + _MARGIN) + _MARGIN, n_rows * cell_height + _MARGIN
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (caption, picture) in enumerate(pictures):
        left = _MARGIN + number % columns * (_THUMBNAIL + _MARGIN)
        top = _MARGIN + number // columns * cell_height
        text = fitted(caption, _THUMBNAIL, lambda text: pen.textlength(text, font))
        pen.text((left, top), text, fill=(28, 33, 38), font=font)
        sheet.paste(picture, (left, top + _CAPTION))
    return sheet


def fitted(caption: str, width: float, length: Callable[[str], float]) -> str:
    """As much of the end of a caption as has at most this length: the end of an id says more than its folders."""
    shortened = (caption, *("…" + caption[start:] for start in range(1, len(caption))))
    return next((text for text in shortened if length(text) <= width), "")
