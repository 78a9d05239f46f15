"""Everything that a person or a tool reads of what was chosen; picks.csv last, so that where it is all the rest is.

Nothing is overwritten with other contents but lists and pages: masks that were corrected stay as they are.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from alges_fast import atomic
from alges_fast.annotation.desk import DESK, Desk, Sheet, View, cut_out, draw, lay_out, on_sheet, view_of
from alges_fast.annotation.exports import (
    AnnotatedFrame,
    csv_text,
    cvat_archive,
    cvat_xml,
    file_name,
    label_studio_config,
    label_studio_tasks,
)
from alges_fast.annotation.page import Asked, Card, Shown, selection_page, shown
from alges_fast.annotation.picks import Pick, PickedFrame, reasons
from alges_fast.annotation.pictures import contact_sheet, outlined, thumbnail, with_mask, with_norm_map
from alges_fast.annotation.sources import LeftOut
from alges_fast.data.files import natural_key, open_picture, read_ids, upright
from alges_fast.data.loading import map_in_order, palette
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.pages import encoded
from alges_fast.windows import Window

PICKS = "picks.csv"
PAGE_CARDS = 200
THUMBNAIL_WIDTH, SHEET_WIDTH = 480, 1600

Write = Callable[[Path, bytes], None]
"""As `atomic.written_together` gives it."""


def write_round(
    out: Path,
    asked: Asked,
    classes: Sequence[str],
    picks: Sequence[Pick],
    picked_frames: Iterable[PickedFrame],
    *,
    budget: int | None,
    left_out: LeftOut,
    image_prefix: str,
    desk: Desk = "frames",
    series: str = "round",
) -> None:
    """Everything a person or a tool reads of a round of picks, picks.csv last.

    Args:
        classes: the classes' names; none where nobody has named them yet.
        picked_frames: the frames of the picks, in order of their first pick.
        budget: what there was for windows, in what `asked.budget` counts; None for whole frames.
        left_out: what of the pool cannot be used.
        image_prefix: what Label Studio serves the folder `out`/images under.
        desk: what windows are annotated on; "auto" is sheets for CVAT and crops for Label Studio.
        series: begins the names of sheets and crops, which must differ from those of other rounds.
    """
    colours = palette(len(classes))
    n_frames = len({pick.frame.id for pick in picks})
    kinds = ("frames",) if budget is None else {"auto": ("sheets", "crops")}.get(desk, (desk,))
    annotated: list[AnnotatedFrame] = []
    views_of: dict[Window, View] = {}
    sheets_shown: dict[str, Shown] = {}
    sheet: list[tuple[str, Image.Image]] = []
    cards: list[Card] = []
    embeddings: dict[int, Tensor] = {}

    with atomic.written_together() as write, ThreadPoolExecutor(1) as beside:

        def drawn(numbered: tuple[int, PickedFrame]) -> _Drawn:
            number, frame = numbered
            windows = [window for at in frame.picks if (window := picks[at].window) is not None]
            colours_of = None if asked.model is None else colours
            whole, in_page = "frames" in kinds, number < PAGE_CARDS
            return _draw_frame(write, out, frame, windows, colours_of, whole=whole, in_page=in_page)

        for frame in map_in_order(drawn, enumerate(picked_frames), ahead=2):
            numbers, windows, id = frame.picks, frame.windows, picks[frame.picks[0]].frame.id
            views_of.update(frame.views_of)
            annotated.append(AnnotatedFrame(file_name(id), frame.mask, 1 - len(annotated) / n_frames, windows))
            sheet.append((f"{numbers[0] + 1}  {id}", frame.on_contact_sheet))
            if frame.views:
                share = None if budget is None else sum(picks[number].cost for number in numbers) / budget
                cards.append(Card(id, numbers, windows, frame.size, share, frame.views))
            if frame.embeddings is not None:
                embeddings.update(zip(numbers, frame.embeddings, strict=True))

        # Pictures are drawn while texts are put together.
        drawing = [beside.submit(lambda: write(out / "contact_sheet.png", encoded(contact_sheet(sheet), "png")))]
        pictures = {"frames": annotated}
        if views_of:
            in_order = [pick.window for pick in picks if pick.window is not None]
            sheets = {kind: lay_out(in_order, series, alone=kind == "crops") for kind in kinds}
            drawing.append(beside.submit(lambda: sheets_shown.update(_write_sheets(write, out, sheets, views_of))))
            masks = {window: view.mask for window, view in views_of.items()}
            pictures = {kind: _annotated(sheets[kind], masks) for kind in kinds}
            atomic.write_json(out / DESK, [sheet.to_json() for kind in kinds for sheet in sheets[kind]])
        xml = cvat_xml(pictures[kinds[0]], classes, colours)
        version = "none" if asked.model is None else Path(asked.model).name
        tasks = label_studio_tasks(pictures[kinds[-1]], classes, image_prefix=image_prefix, model_version=version)
        for drawn_beside in drawing:
            drawn_beside.result()
    atomic.write_bytes(out / "cvat.zip", cvat_archive(out, xml, [frame.name for frame in pictures[kinds[0]]]))
    atomic.write_text(out / "label_studio" / "tasks.json", tasks)
    if classes:
        many: Literal["none", "one", "many"] = "none" if budget is None else "one" if kinds[-1] == "crops" else "many"
        atomic.write_text(out / "label_studio" / "config.xml", label_studio_config(classes, colours, windows=many))
    points = torch.stack([embeddings[number] for number in range(len(picks))]) if embeddings else None
    rows = _rows(picks, points, None if asked.model is None else classes, budget)
    page = selection_page(asked, classes, colours, cards, rows, n_frames, budget, left_out.by_file(), sheets_shown)
    atomic.write_text(out / "index.html", page)
    if left_out.reasons:
        missing = [{"id": name, "reason": left_out.reasons[name]} for name in sorted(left_out.reasons, key=natural_key)]
        atomic.write_text(out / "left_out.csv", csv_text(missing))
    atomic.write_text(out / PICKS, csv_text(rows))


@dataclass(frozen=True)
class _Drawn:
    """What is left of a picked frame once its files are written.

    picks, embeddings: as in `PickedFrame`. windows: that are picked. size: width and height. mask: as it goes to tools.
    views: by name, small; none where it is not in the page. views_of: of its windows.
    """

    picks: Sequence[int]
    embeddings: Tensor | None
    windows: Sequence[Window]
    size: tuple[int, int]
    mask: NDArray[np.uint8]
    views: dict[str, Shown]
    views_of: dict[Window, View]
    on_contact_sheet: Image.Image


def _draw_frame(
    write: Write,
    out: Path,
    frame: PickedFrame,
    windows: Sequence[Window],
    colours: Sequence[tuple[int, int, int]] | None,
    *,
    whole: bool,
    in_page: bool,
) -> _Drawn:
    """Write a frame's pictures. The colours are its predicted classes', None where nothing predicts; `whole` is whether
    it goes out as a frame."""
    image_path, mask_path, map_path = paths_of(out, frame.frame.id)
    picture = Image.fromarray(frame.image)
    if whole:
        _write_once(write, image_path, _original(frame))
    mask = _within(frame.mask, windows)
    views = {"frame": picture}
    if frame.norm_map is not None:
        views["gradient"] = with_norm_map(frame.image, frame.norm_map)
        _write_once(write, map_path, encoded(views["gradient"], "jpeg", quality=88))
    if colours is not None:
        if windows:
            _write_windows(write, mask_path, mask, windows)
        else:
            _write_once(write, mask_path, encoded(Image.fromarray(mask), "png"))
        views["prediction"] = with_mask(frame.image, frame.mask, colours)
    return _Drawn(
        frame.picks,
        frame.embeddings,
        windows,
        picture.size,
        mask,
        {view: shown(thumbnail(p, THUMBNAIL_WIDTH)) for view, p in views.items()} if in_page else {},
        {} if whole else {window: view_of(window, frame.image, frame.mask) for window in windows},
        thumbnail(outlined(picture, windows) if windows else picture, THUMBNAIL_WIDTH),
    )


def _write_sheets(
    write: Write, out: Path, sheets: Mapping[str, Sequence[Sheet]], views: Mapping[Window, View]
) -> dict[str, Shown]:
    """Sheets as pictures to annotate, by kind, and those of many windows as the page has them. Crops beside sheets are
    cut out of them: magnifying is most of the work."""
    crops = {crop.cells[0].number: crop for crop in sheets.get("crops", ())}

    def save(name: str, picture: Image.Image) -> None:
        write(out / "images" / name, encoded(picture, "jpeg", quality=95, subsampling=0))

    def written(sheet: Sheet) -> Shown | None:
        picture = draw(sheet, views)
        save(sheet.name, picture)
        for cell in sheet.cells if crops and "sheets" in sheets else ():
            save(crops[cell.number].name, cut_out(picture, cell, crops[cell.number]))
        # Of magnified windows there is nothing fine to lose, and a sheet is 14 million pixels.
        return shown(thumbnail(picture, SHEET_WIDTH, gap=1.0)) if len(sheet.cells) > 1 else None

    drawn = sheets.get("sheets") or sheets["crops"]
    in_page = zip(drawn, map_in_order(written, drawn, ahead=1), strict=True)
    return {sheet.name: small for sheet, small in in_page if small is not None}


def _annotated(sheets: Sequence[Sheet], masks: Mapping[Window, NDArray[np.uint8]]) -> list[AnnotatedFrame]:
    return [
        AnnotatedFrame(
            sheet.name,
            on_sheet(sheet, masks),
            1 - number / len(sheets),
            [cell.on(sheet.name) for cell in sheet.cells],
        )
        for number, sheet in enumerate(sheets)
    ]


def remove_refused(out: Path, refused: Sequence[str | Window], picks: Sequence[Pick]) -> None:
    """Take away the pictures of frames that were picked here before, perhaps, and are refused now."""
    picked = {pick.frame.id for pick in picks}
    for id in {item.id if isinstance(item, Window) else item for item in refused}.difference(picked):
        for path in paths_of(out, str(id)):
            path.unlink(missing_ok=True)


def check_names(out: Path, ids: Iterable[str]) -> None:
    """Ids become files' names under OUT, where ".." is left out. Raises UserError where two would be one file."""
    exact: dict[str, str] = {}
    folded: dict[str, str] = {}
    folds: bool | None = None
    for id in ids:
        name = file_name(id)
        other = exact.setdefault(name, id)
        if other == id and (like := folded.setdefault(unicodedata.normalize("NFC", name).casefold(), id)) != id:
            folds = atomic.folds_case(out) if folds is None else folds
            other = like if folds else id
        if other != id:
            raise UserError(
                f"{other} and {id} would both be {out}/images/{name}: rename one, or put the text list into a folder "
                "that holds both"
            )


def _rows(
    picks: Sequence[Pick], embeddings: Tensor | None, classes: Sequence[str] | None, budget: int | None
) -> list[dict[str, Any]]:
    """picks.csv: without a model there are no classes, without embeddings no nearest; with a budget, the share of it
    that is spent from the first pick on, and where it is one of outline, that of every pick."""
    rows: list[dict[str, Any]] = []
    spent = 0
    why = [None] * len(picks) if embeddings is None else reasons(embeddings)
    for number, (pick, reason) in enumerate(zip(picks, why, strict=True)):
        _, x, y, width, height = pick.window or ("", "", "", "", "")
        row: dict[str, Any] = {"rank": number + 1, "id": pick.id, "frame": pick.frame.id}
        row |= {"x": x, "y": y, "width": width, "height": height}
        if pick.window is not None and budget is not None:
            spent += pick.cost
            row["budget_spent"] = f"{spent / budget:.6f}"
        if pick.outline is not None:
            row["outline"] = f"{pick.outline:.1f}"
        row["score"] = "" if pick.score is None else f"{pick.score:.6g}"
        row["class"] = "" if classes is None or reason is None else classes[reason.leading_class]
        nearest = None if reason is None else reason.nearest
        row["nearest"] = "" if nearest is None else picks[nearest].id
        row["distance"] = "" if reason is None or nearest is None else f"{reason.distance:.6g}"
        row["video"] = pick.frame.video
        rows.append(row)
    return rows


def paths_of(out: Path, id: str) -> tuple[Path, Path, Path]:
    """Of a frame's image, mask and norm map; pictures of one folder that differ in their extension alone stay apart, as
    every name but the image's is the whole name plus an extension."""
    name = file_name(id)
    return out / "images" / name, out / "masks" / f"{name}.png", out / "norm_maps" / f"{name}.jpg"


def _original(picked: PickedFrame) -> bytes:
    """The picture's own file; a video's frame as PNG. What is upright only by its EXIF is written without it: some
    tools heed that and some do not, and masks have to fit."""
    kind, path = "png", picked.frame.path
    if picked.frame.timestamp is None:
        with open_picture(path) as picture:
            if upright(picture) is None:
                return path.read_bytes()
            kind = "jpeg" if picture.format == "MPO" else str(picture.format)
    return encoded(Image.fromarray(picked.image), kind, quality=95, subsampling=0)


def _within(mask: NDArray[np.uint8], windows: Sequence[Window]) -> NDArray[np.uint8]:
    """The mask inside the windows and UNLABELLED outside; all of it where there are none."""
    if not windows:
        return mask
    kept = np.full_like(mask, UNLABELLED)
    for window in windows:
        kept[window.box] = mask[window.box]
    return kept


def _write_windows(write: Write, path: Path, mask: NDArray[np.uint8], windows: Sequence[Window]) -> None:
    """A mask of a frame's windows; those that an earlier selection put there stay as they were corrected."""
    before = read_ids(path) if path.exists() else None
    if before is None or before.shape != mask.shape:
        write(path, encoded(Image.fromarray(mask), "png"))
        return
    merged = _within(before, windows)
    for window in windows:
        if (merged[window.box] == UNLABELLED).all():
            merged[window.box] = mask[window.box]
    if not np.array_equal(merged, before):
        write(path, encoded(Image.fromarray(merged), "png"))


def _write_once(write: Write, path: Path, contents: bytes) -> None:
    if not path.exists():
        write(path, contents)
