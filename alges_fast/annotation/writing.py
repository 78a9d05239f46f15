"""Everything that a person or a tool reads of a selection; picks.csv last, so that where it is all the rest is.

Nothing is overwritten with other contents but lists and pages: masks that were corrected stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from alges_fast import atomic
from alges_fast.annotation.config import SelectConfig
from alges_fast.annotation.exports import (
    AnnotatedFrame,
    csv_text,
    cvat_archive,
    cvat_xml,
    file_name,
    label_studio_config,
    label_studio_tasks,
)
from alges_fast.annotation.page import Card, selection_page
from alges_fast.annotation.picks import Pick, PickedFrame, reasons
from alges_fast.annotation.pictures import contact_sheet, encoded, outlined, thumbnail, with_mask, with_norm_map
from alges_fast.annotation.sources import LeftOut, PoolFrame
from alges_fast.data.files import natural_key, open_picture
from alges_fast.data.loading import palette
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.windows import Window

PAGE_CARDS = 200
THUMBNAIL_WIDTH = 480


def write_selection(
    out: Path,
    config: SelectConfig,
    classes: Sequence[str],
    picks: Sequence[Pick],
    budget: int | None,
    refused: Sequence[str | Window],
    left_out: LeftOut,
    picked_frames: Iterator[PickedFrame],
) -> list[str]:
    """Everything a person or a tool reads, picks.csv last.

    Args:
        out: the folder.
        config: what was asked for.
        classes: the classes' names.
        picks: what was chosen, in order.
        budget: the pixels that there were for windows; None for whole frames.
        refused: frames and windows that were picked here before, perhaps, and are no longer.
        left_out: what of the pool cannot be used.
        picked_frames: the frames of the picks.

    Returns:
        What a user should be told of them.
    """
    colours = palette(len(classes))
    picked = {pick.frame.id for pick in picks}
    for id in {item.id if isinstance(item, Window) else item for item in refused}.difference(picked):
        _, *paths = paths_of(out, str(id))
        for path in paths:
            path.unlink(missing_ok=True)
    annotated: list[AnnotatedFrame] = []
    sheet: list[tuple[str, Image.Image]] = []
    cards: list[Card] = []
    embeddings: dict[int, Tensor] = {}
    progress = track(
        picked_frames, "drawing the picks", total=len(picked), console=Console(stderr=True), transient=True
    )
    for shown in progress:
        frame = shown.frame
        windows = [window for number in shown.picks if (window := picks[number].window) is not None]
        name, image_path, mask_path, map_path = paths_of(out, frame.id)
        picture = Image.fromarray(shown.image)
        _write_once(image_path, _original(shown))
        mask = _within(shown.mask, windows)
        if windows:
            _write_windows(mask_path, mask, windows)
        else:
            _write_once(mask_path, encoded(Image.fromarray(mask), "png"))
        views = {"frame": picture}
        if shown.norm_map is not None:
            views["gradient"] = with_norm_map(shown.image, shown.norm_map)
            _write_once(map_path, encoded(views["gradient"], "jpeg", quality=88))
        views["prediction"] = with_mask(shown.image, shown.mask, colours)
        annotated.append(AnnotatedFrame(name, mask, 1 - len(annotated) / len(picked), windows))
        caption = f"{shown.picks[0] + 1}  {frame.id}"
        sheet.append((caption, thumbnail(outlined(picture, windows) if windows else picture, THUMBNAIL_WIDTH)))
        if len(cards) < PAGE_CARDS:
            small = {view: thumbnail(p, THUMBNAIL_WIDTH) for view, p in views.items()}
            cards.append(Card(frame.id, shown.picks, windows, picture.size, small))
        embeddings.update(zip(shown.picks, shown.embeddings, strict=True))
    notes: list[str] = []
    if not any("gradient" in card.views for card in cards):
        notes.append("no norm maps: what follows this model's last layer does not define them")

    atomic.write_bytes(out / "contact_sheet.png", encoded(contact_sheet(sheet), "png"))
    xml = cvat_xml(annotated, classes, colours)
    atomic.write_bytes(out / "cvat.zip", cvat_archive(out, xml, [frame.name for frame in annotated]))
    atomic.write_text(
        out / "label_studio" / "tasks.json",
        label_studio_tasks(annotated, classes, image_prefix=config.image_prefix, model_version=Path(config.model).name),
    )
    interface = label_studio_config(classes, colours, windows=budget is not None)
    atomic.write_text(out / "label_studio" / "config.xml", interface)
    rows = _rows(picks, classes, torch.stack([embeddings[number] for number in range(len(picks))]), budget)
    page = selection_page(config, classes, colours, cards, rows, len(picked), budget, left_out.by_file())
    atomic.write_text(out / "index.html", page)
    if left_out.reasons:
        missing = [{"id": name, "reason": left_out.reasons[name]} for name in sorted(left_out.reasons, key=natural_key)]
        atomic.write_text(out / "left_out.csv", csv_text(missing))
    atomic.write_text(out / "picks.csv", csv_text(rows))
    return notes


def check_names(out: Path, frames: Sequence[PoolFrame]) -> None:
    """Ids become files' names under OUT, where ".." is left out."""
    ids: dict[str, str] = {}
    for frame in frames:
        name, *_ = paths_of(out, frame.id)
        if ids.setdefault(name, frame.id) != frame.id:
            raise UserError(
                f"{ids[name]} and {frame.id} would both be {out}/images/{name}: rename one, or put the text list into "
                "a folder that holds both"
            )


def _rows(
    picks: Sequence[Pick], classes: Sequence[str], embeddings: Tensor, budget: int | None
) -> list[dict[str, Any]]:
    """picks.csv; with a budget of pixels, also each window and the share of it that is spent from the first pick on."""
    rows: list[dict[str, Any]] = []
    spent = 0
    for number, (pick, reason) in enumerate(zip(picks, reasons(embeddings), strict=True)):
        row: dict[str, Any] = {"rank": number + 1, "id": pick.id}
        if pick.window is not None and budget is not None:
            _, x, y, width, height = pick.window
            spent += pick.window.pixels
            row |= {"frame": pick.frame.id, "x": x, "y": y, "width": width, "height": height}
            row["budget_spent"] = f"{spent / budget:.6f}"
        row["score"] = "" if pick.score is None else f"{pick.score:.6g}"
        row["class"] = classes[reason.leading_class]
        row["nearest"] = "" if reason.nearest is None else picks[reason.nearest].id
        row["distance"] = "" if reason.nearest is None else f"{reason.distance:.6g}"
        row["video"] = pick.frame.video
        rows.append(row)
    return rows


def paths_of(out: Path, id: str) -> tuple[str, Path, Path, Path]:
    """A frame's name in import files and its image, mask and norm map; pictures of one folder that differ in their
    extension alone stay apart, as every name but the image's is the whole name plus an extension."""
    name = file_name(id)
    return name, out / "images" / name, out / "masks" / f"{name}.png", out / "norm_maps" / f"{name}.jpg"


def _original(picked: PickedFrame) -> bytes:
    """The picture's own file; a video's frame as PNG."""
    if picked.frame.timestamp is None:
        return picked.frame.path.read_bytes()
    return encoded(Image.fromarray(picked.image), "png")


def _within(mask: NDArray[np.uint8], windows: Sequence[Window]) -> NDArray[np.uint8]:
    """The mask inside the windows and UNLABELLED outside; all of it where there are none."""
    if not windows:
        return mask
    kept = np.full_like(mask, UNLABELLED)
    for _, x, y, width, height in windows:
        kept[y : y + height, x : x + width] = mask[y : y + height, x : x + width]
    return kept


def _write_windows(path: Path, mask: NDArray[np.uint8], windows: Sequence[Window]) -> None:
    """A mask of a frame's windows; those that an earlier selection put there stay as they were corrected."""
    before = None
    if path.exists():
        with open_picture(path) as picture:
            before = np.asarray(picture)
    if before is None or before.shape != mask.shape:
        atomic.write_bytes(path, encoded(Image.fromarray(mask), "png"))
        return
    merged = _within(before, windows)
    for _, x, y, width, height in windows:
        inside = merged[y : y + height, x : x + width]
        if (inside == UNLABELLED).all():
            inside[:] = mask[y : y + height, x : x + width]
    if not np.array_equal(merged, before):
        atomic.write_bytes(path, encoded(Image.fromarray(merged), "png"))


def _write_once(path: Path, contents: bytes) -> None:
    if not path.exists():
        atomic.write_bytes(path, contents)
