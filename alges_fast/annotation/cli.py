"""The command line of `python -m alges_fast.select`; `--help` for what can be set.

    OUT/picks.csv                       the frames, or windows of frames, in order of picking, and why
    OUT/index.html, contact_sheet.png   to look through
    OUT/images, masks, norm_maps        the picked frames, predicted class ids at their size, gradient mass over them
    OUT/cvat.zip, label_studio/         import files with the predictions as pre-annotations
    OUT/left_out.csv                    what of the pool could not be used, and why (--on_bad_image skip)
    OUT/config.yaml, pool.json, scores/ what the same command continues from

Nothing in OUT is overwritten with other contents: masks that were corrected there stay as they are. With --regions a
mask is 255, which is no class, outside the picked windows.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from torch import Tensor, nn

from alges_fast import atomic
from alges_fast.annotation.config import SelectConfig
from alges_fast.annotation.exports import (
    ANNOTATE,
    AnnotatedFrame,
    cvat_xml,
    label_studio_config,
    label_studio_tasks,
)
from alges_fast.annotation.models import load_model
from alges_fast.annotation.page import Card, selection_page
from alges_fast.annotation.picks import Look, Pick, look_at, reasons
from alges_fast.annotation.pictures import contact_sheet, encoded, outlined, thumbnail, with_mask, with_norm_map
from alges_fast.annotation.sources import (
    FramePool,
    LeftOut,
    PoolFrame,
    frame_sizes,
    list_frames,
    resized,
)
from alges_fast.command import arguments_of, check_unchanged, one_line, out_of_memory, plain, refused, with_home
from alges_fast.data import to_input
from alges_fast.data.files import IMAGE_SUFFIXES, natural_key, open_picture
from alges_fast.data.loading import palette
from alges_fast.errors import UserError
from alges_fast.labels import UNLABELLED
from alges_fast.last_layer import LastLayer
from alges_fast.models import build_model
from alges_fast.pool.row_file import fingerprint
from alges_fast.selection import Place, select, select_regions
from alges_fast.strategies import get_strategy
from alges_fast.windows import Window

FREE_FIELDS = frozenset({"out", "on_bad_image", "reject", "device", "batch_size"})
"""Fields of SelectConfig that may differ when a selection is continued."""

LOCK = ".lock"
"""Held under OUT from the scoring of the pool on: two processes would write into one file of scores."""

GAP_SECONDS, NUMBERS_A_SECOND = 2.0, 25.0  # of the default --min_gap: pictures are numbered at a video's rate
PAGE_CARDS = 200
_RECORD = {"frames": list, "labelled": list, "left_out": dict, "weights": str}  # pool.json
THUMBNAIL_WIDTH = 480


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, choose, write; the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        _run(parse(sys.argv[1:] if argv is None else argv), Console(highlight=False, soft_wrap=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}: make it readable and --out writable, then run again", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        print("error: out of memory: lower --batch_size, then run again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        return 130
    return 0


def parse(argv: Sequence[str]) -> SelectConfig:
    """A configuration from flags, over a YAML file, over SelectConfig's defaults.

    Raises:
        UserError: a flag, key or value that does not exist, or a needed one left out; one line.
    """
    parser = jsonargparse.ArgumentParser(
        prog="python -m alges_fast.select",
        description="The next frames to annotate: a trained model chooses them from a pool, and shows why.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags override it.")
    parser.add_class_arguments(SelectConfig, fail_untyped=True)
    try:
        parsed = parser.parse_args(arguments_of(argv, SelectConfig))
    except jsonargparse.ArgumentError as error:
        raise refused(error, SelectConfig) from error
    values = {name: value for name, value in parsed.clone(with_meta=False).as_dict().items() if name != "config"}
    for name in ("model", "images"):
        if values[name] is None:
            raise UserError(f"--{name} is missing: give it. See --help")
    return with_home(SelectConfig(**values))


@dataclass(frozen=True)
class _Pool:
    """Frames, and which of them or of their windows are labelled."""

    frames: Sequence[PoolFrame]
    labelled: Sequence[str | Window]

    def without(self, left_out: LeftOut) -> _Pool:
        """What can be used of it."""
        frames = [frame for frame in self.frames if frame.id not in left_out.reasons]
        return _Pool(frames, [item for item in self.labelled if not left_out.has(str(item))])

    @property
    def n_windows(self) -> int:
        """Labelled windows."""
        return sum(isinstance(item, Window) for item in self.labelled)

    @property
    def n_free(self) -> int:
        """Frames that are not labelled as a whole."""
        return len(self.frames) - len(self.labelled) + self.n_windows


@dataclass(frozen=True)
class _Scorer:
    """What scores the pool."""

    model: nn.Module
    device: torch.device
    classes: Sequence[str]
    class_weights: Sequence[float] | None
    batch_size: int
    transform: Callable[[Tensor], Tensor]


def _run(config: SelectConfig, console: Console) -> None:
    out = Path(config.out)
    _check_folder(out, config)
    record = _read_record(out)
    left_out = _known_left_out(out, record, config.on_bad_image)
    listed = _with_labelled(list_frames(Path(config.images), fps=config.fps, left_out=left_out), config, left_out)
    sizes = {} if config.grid is None else frame_sizes(listed.without(left_out).frames, left_out)
    if record is not None and (new := [name for name in left_out.reasons if name not in record["left_out"]]):
        raise UserError(f"{left_out.reasons[new[0]]}. {out} was begun when it could be used: or choose another --out")
    pool = listed.without(left_out)
    _check_number(config, pool, left_out)
    _check_names(out, pool.frames)
    refused = _refused(listed.frames, config, left_out)
    scorer = _scorer(config)
    weights = fingerprint(scorer.model)

    with atomic.locked(out / LOCK, wait=False) as alone:
        if not alone or _read_record(out) != record:
            raise UserError(f"{out}: another process is choosing there: wait until it is done, or choose another --out")
        if record is not None:
            _check_record(record, pool, left_out, weights, config)
            pool = _as_begun(record, pool)

        def save() -> None:
            atomic.write_json(out / "pool.json", _record(pool, left_out, weights))

        atomic.write_text(out / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))
        save()
        usable = pool.without(left_out)
        n_labelled = len(usable.frames) - usable.n_free
        partly = f" and {usable.n_windows} windows" if usable.n_windows else ""
        what = f"{len(usable.frames)} frames, {n_labelled}{partly} labelled, {len(scorer.classes)} classes"
        console.print(f"{what}, on {scorer.device}")
        frames = FramePool(pool.frames, config.image_size, left_out, save)
        picks, budget = _choose(config, scorer, pool, frames, refused, sizes)
        looks = look_at(
            scorer.model,
            picks,
            strategy=config.strategy,
            class_weights=scorer.class_weights,
            regions=config.grid,
            inputs_of=lambda _, image: scorer.transform(resized(image, config.image_size)[None].to(scorer.device)),
            device=scorer.device,
            precision=config.precision,
        )
        _write(out, config, scorer.classes, picks, budget, refused, left_out, looks, console)
    for line in left_out.by_file():
        console.print(escape(f"left out: {line}"))
    n_frames = len({pick.frame.id for pick in picks})
    what = f"{n_frames} picks" if budget is None else f"{len(picks)} windows of {n_frames} frames picked"
    console.print(escape(f"{what}: {out}/picks.csv   to look through: {out}/index.html"))


def _choose(
    config: SelectConfig,
    scorer: _Scorer,
    pool: _Pool,
    frames: FramePool,
    refused: Sequence[str | Window],
    sizes: Mapping[str, tuple[int, int]],
) -> tuple[list[Pick], int | None]:
    """The picks, and the pixels there were for windows."""
    scores, left_out = Path(config.out) / "scores", frames.left_out
    by_id = {frame.id: frame for frame in pool.frames}
    while True:
        n_left_out = len(left_out.reasons)
        usable = pool.without(left_out)
        _check_number(config, usable, left_out)
        budget = None
        how: dict[str, Any] = {
            "strategy": config.strategy,
            "seed": config.seed,
            "labelled": usable.labelled,
            "excluded": set(left_out.reasons),
            "places": _places(usable.frames, config.min_gap),
            "min_gap": GAP_SECONDS if config.min_gap is None else config.min_gap,
            "class_weights": scorer.class_weights,
            "out": scores,
            "resume": True,
            "transform": scorer.transform,
            "batch_size": scorer.batch_size,
            "device": scorer.device,
            "precision": config.precision,
        }
        try:
            if config.grid is None:
                selection = select(scorer.model, frames, config.n, **how)
                while again := [id for id in refused if id in selection.ids][:1]:
                    selection = selection.reject(again)
                picks = [Pick(by_id[str(id)], None, selection.scores.get(id)) for id in selection.ids]
            else:
                here: dict[Any, tuple[int, int]] = {frame.id: sizes[frame.id] for frame in usable.frames}
                budget = config.budget_pixels or _pixels_of_frames(config.n, here, usable.labelled)
                chosen = select_regions(scorer.model, frames, budget, regions=config.grid, sizes=here, **how)
                while (item := _still_picked(refused, chosen.windows)) is not None:
                    chosen = chosen.reject([item])
                picks = [Pick(by_id[str(w.id)], w, chosen.scores.get(w)) for w in chosen.windows]
        except ValueError as error:
            if len(left_out.reasons) == n_left_out:
                message = re.sub(r"resume=False (replaces it|begins anew)", "choose another --out", str(error))
                raise UserError(one_line(message)) from error
            continue
        except OSError as error:  # of the files of scores: what a frame's file raises has been named
            reason = re.sub("; resume=True.*", "", error.strerror or str(error))
            where = error.filename or scores
            raise UserError(
                f"{where} cannot be written ({reason}): make room or choose another --out, then run again"
            ) from error
        if not get_strategy(config.strategy).needs_model:  # perhaps no frame has been read yet
            for id in dict.fromkeys(pick.frame.id for pick in picks):
                frames[frames.ids.index(id)]
        # What was found to be unusable on the way must not count: once more without it, from the scores there are.
        if len(left_out.reasons) == n_left_out:
            return picks, budget


# Reading what the user gave.


def _with_labelled(frames: list[PoolFrame], config: SelectConfig, left_out: LeftOut) -> _Pool:
    """The pool, with labelled pictures from elsewhere added."""
    source = config.labelled
    if source is None:
        return _Pool(frames, [])
    ids = {frame.id for frame in frames}
    ids_of_paths = {frame.path.resolve(): frame.id for frame in frames if frame.timestamp is None}
    added: dict[str, PoolFrame] = {}
    labelled: list[str | Window] = []
    for line in _lines(source, "--labelled"):
        path = next((p for p in (Path(source).parent / line, Path(line)) if p.is_file()), None)
        window = None if line in ids or path is not None else _window(line, ids)
        if window is not None:
            if config.regions is None:
                raise UserError(f"{source}: {line} is a window of a frame: give the --regions it was picked with")
            labelled.append(window)
        elif line in ids:
            labelled.append(line)
        elif path is not None and path.resolve() in ids_of_paths:
            labelled.append(ids_of_paths[path.resolve()])
        elif path is not None and path.suffix.lower() in IMAGE_SUFFIXES:
            added[path.as_posix()] = PoolFrame(path.as_posix(), path.parent.as_posix(), math.inf, path)
        elif left_out.has(line):
            continue
        else:
            raise UserError(f"{source}: {line} is neither an id of the pool nor a picture: correct the list")
    return _Pool([*frames, *added.values()], list(dict.fromkeys([*labelled, *added])))


def _refused(frames: Sequence[PoolFrame], config: SelectConfig, left_out: LeftOut) -> list[str | Window]:
    source = config.reject
    if source is None:
        return []
    ids = {frame.id for frame in frames}
    refused: list[str | Window] = []
    for line in _lines(source, "--reject"):
        item = line if line in ids or config.regions is None else _window(line, ids)
        if left_out.has(line):
            continue
        if item is None or (isinstance(item, str) and item not in ids):
            raise UserError(f"{source}: {line} is no id of the pool: give ids as picks.csv has them")
        refused.append(item)
    return refused


def _window(line: str, ids: Collection[str]) -> Window | None:
    """The window that `str(window)` names, of one of these frames."""
    found = re.fullmatch(r"(.*)#xywh=(\d+),(\d+),(\d+),(\d+)", line)
    if found is None or found[1] not in ids:
        return None
    x, y, width, height = map(int, found.groups()[1:])
    return Window(found[1], x, y, width, height)


def _still_picked(refused: Sequence[str | Window], windows: Sequence[Window]) -> str | Window | None:
    """The first refused window, or frame with such windows, that is among the picks."""
    picked = {*windows, *(window.id for window in windows)}
    return next((item for item in refused if item in picked), None)


def _pixels_of_frames(n: int, sizes: Mapping[str, tuple[int, int]], labelled: Collection[str | Window]) -> int:
    """What n whole frames have, on average over those that are not labelled."""
    free = [height * width for id, (height, width) in sizes.items() if id not in labelled]
    return n * sum(free) // len(free)


def _lines(source: str, flag: str) -> list[str]:
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {source}: cannot be read ({one_line(str(error))}): give a text file") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no usable GPU; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _scorer(config: SelectConfig) -> _Scorer:
    device = _device(config.device)

    def build(n_classes: int) -> nn.Module:
        return build_model(
            config.architecture, config.encoder, num_classes=n_classes, head_kernel=config.head_kernel, seed=0
        )

    model, fixed = load_model(config.model, image_size=config.image_size, build=build)
    if fixed not in (None, 1):
        raise UserError(f"{config.model}: takes {fixed} frames at a time: export it for one, or for any number")
    model.to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        blank = torch.zeros(1, 3, config.image_size, config.image_size, device=device)
        layer: Any = LastLayer.find(model, blank)
    except Exception as error:  # whatever the user's model does with it
        raise UserError(
            f"{config.model} cannot score frames of --image_size {config.image_size}: {one_line(str(error))[:300]}"
        ) from error
    classes = _class_names(config.classes, layer.n_classes, config.regions)
    return _Scorer(
        model=model,
        device=device,
        classes=classes,
        class_weights=_class_weights(config.class_weights, classes),
        batch_size=fixed or config.batch_size,
        transform=to_input if config.normalise == "imagenet" else _to_unit,
    )


def _class_names(given: str | None, n_classes: int, regions: str | None) -> list[str]:
    if given is None:
        return [f"class {k}" for k in range(n_classes)]
    # os.path, which takes a list too long for a file's name for no file; pathlib raises.
    names = _lines(given, "--classes") if os.path.isfile(given) else [name.strip() for name in given.split(",")]
    if len(names) != n_classes or len(set(names)) < len(names):
        raise UserError(
            f"--classes {given}: {len(set(names))} different names, but the model has {n_classes} classes: give one "
            "for each, in the order of its ids"
        )
    if regions is not None and ANNOTATE in names:
        raise UserError(f"--classes: {ANNOTATE!r} is what --regions labels the windows to annotate: rename the class")
    return names


def _class_weights(given: str | None, classes: Sequence[str]) -> list[float] | None:
    if given is None:
        return None
    try:
        if not given.lstrip().startswith("{"):
            return [float(value) for value in given.split(",")]
        factors = json.loads(given)
        unknown = [name for name in factors if name not in classes]
        if unknown:
            raise UserError(f"--class_weights: no class {unknown[0]!r}: use {', '.join(classes)}")
        return [float(factors.get(name, 1)) for name in classes]
    except (ValueError, TypeError):
        raise UserError(f'--class_weights {given}: give numbers like 1,1,10 or JSON like {{"polyp": 10}}') from None


def _places(frames: Sequence[PoolFrame], min_gap: float | None) -> Mapping[Any, Place]:
    """Where frames are in their videos: as files give it, or in seconds for the default gap."""
    return {
        frame.id: (
            frame.video,
            frame.order / NUMBERS_A_SECOND if min_gap is None and frame.timestamp is None else frame.order,
        )
        for frame in frames
    }


def _to_unit(images: Tensor) -> Tensor:
    return images.float() / 255


# What a selection is checked for before it goes on.


def _check_number(config: SelectConfig, pool: _Pool, left_out: LeftOut) -> None:
    if config.n > pool.n_free:
        less = f" ({len(left_out.reasons)} more are left out: {left_out.by_file()[0]})" if left_out.reasons else ""
        raise UserError(f"--n {config.n}: the pool has {pool.n_free} frames to choose from{less}")


def _check_names(out: Path, frames: Sequence[PoolFrame]) -> None:
    """Ids become files' names under OUT, where ".." is left out."""
    ids: dict[str, str] = {}
    for frame in frames:
        name, *_ = _paths(out, frame.id)
        if ids.setdefault(name, frame.id) != frame.id:
            raise UserError(
                f"{ids[name]} and {frame.id} would both be {out}/images/{name}: rename one, or put the text list into "
                "a folder that holds both"
            )


def _check_folder(out: Path, config: SelectConfig) -> None:
    """Refuse a folder that is somebody else's or of another configuration."""
    if out.exists() and not (out / "config.yaml").exists():
        begun = {LOCK, ".config.yaml.draft"}  # what a process leaves that is killed at its first write
        if not out.is_dir() or any(path.name not in begun for path in out.iterdir()):
            raise UserError(f"--out {out} holds other files: choose a new folder")
    check_unchanged(out / "config.yaml", plain(config), FREE_FIELDS)


def _record(pool: _Pool, left_out: LeftOut, weights: str) -> dict[str, Any]:
    """pool.json: what the picks depend on besides config.yaml."""
    return {
        "frames": [frame.id for frame in pool.frames],
        "labelled": [str(item) for item in pool.without(left_out).labelled],
        "left_out": left_out.reasons,
        "weights": weights,
    }


def _read_record(out: Path) -> dict[str, Any] | None:
    """None where nothing has been scored or chosen yet."""
    path = out / "pool.json"
    if not path.exists() and not (out / "scores").exists() and not (out / "picks.csv").exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(record[name], kind) for name, kind in _RECORD.items()):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged or missing: restore it, or choose another --out") from error
    return dict(record)


def _known_left_out(out: Path, record: Mapping[str, Any] | None, on_bad_image: str) -> LeftOut:
    known = {} if record is None else record["left_out"]
    if known and on_bad_image == "stop":
        name, reason = next(iter(known.items()))
        raise UserError(
            f"{out} was begun without {name} ({reason}): give --on_bad_image skip to continue it, or choose another "
            "--out"
        )
    return LeftOut(on_bad_image, known)


def _check_record(
    record: Mapping[str, Any], pool: _Pool, left_out: LeftOut, weights: str, config: SelectConfig
) -> None:
    """Refuse to go on with another pool or other weights than those that scores were made with."""
    if record["weights"] != weights:
        raise UserError(
            f"{config.model} has other weights than when {config.out} was begun: give those, or choose another --out"
        )
    now = _record(pool, left_out, weights)
    for what, other in (("frames", "another pool"), ("labelled", "other labelled frames")):
        before = [name for name in record[what] if not left_out.has(name)]
        if before == now[what]:
            continue
        changes = [f"{name} is new" for name in sorted(set(now[what]) - set(before))]
        changes += [f"{name} is gone" for name in sorted(set(before) - set(now[what]))]
        shown = ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
        raise UserError(
            f"{config.out} was begun with {other} ({shown or 'in another order'}): restore that, or choose another "
            "--out"
        )


def _as_begun(record: Mapping[str, Any], pool: _Pool) -> _Pool:
    """The pool with what was left out since it was begun, whose place among the scores is kept, in its place."""
    frames = {frame.id: frame for frame in pool.frames}
    gone = PoolFrame("", "", math.inf, Path())
    return _Pool([frames.get(id) or replace(gone, id=id) for id in record["frames"]], pool.labelled)


# Writing what was chosen.


def _write(
    out: Path,
    config: SelectConfig,
    classes: Sequence[str],
    picks: Sequence[Pick],
    budget: int | None,
    refused: Sequence[str | Window],
    left_out: LeftOut,
    looks: Iterator[Look],
    console: Console,
) -> None:
    """Everything a person or a tool reads, picks.csv last."""
    colours = palette(len(classes))
    picked = {pick.frame.id for pick in picks}
    for id in {item.id if isinstance(item, Window) else item for item in refused}.difference(picked):
        _, *paths = _paths(out, str(id))
        for path in paths:
            path.unlink(missing_ok=True)
    annotated: list[AnnotatedFrame] = []
    sheet: list[tuple[str, Image.Image]] = []
    cards: list[Card] = []
    embeddings: dict[int, Tensor] = {}
    progress = track(looks, "drawing the picks", total=len(picked), console=Console(stderr=True), transient=True)
    for look in progress:
        frame = look.frame
        windows = [window for number in look.picks if (window := picks[number].window) is not None]
        name, image_path, mask_path, map_path = _paths(out, frame.id)
        picture = Image.fromarray(look.image)
        _write_once(image_path, _original(look))
        mask = _within(look.mask, windows)
        if windows:
            _write_windows(mask_path, mask, windows)
        else:
            _write_once(mask_path, encoded(Image.fromarray(mask), "png"))
        views = {"frame": picture}
        if look.norm_map is not None:
            views["gradient"] = with_norm_map(look.image, look.norm_map)
            _write_once(map_path, encoded(views["gradient"], "jpeg", quality=88))
        views["prediction"] = with_mask(look.image, look.mask, colours)
        annotated.append(AnnotatedFrame(name, mask, 1 - len(annotated) / len(picked), windows))
        caption = f"{look.picks[0] + 1}  {frame.id}"
        sheet.append((caption, thumbnail(outlined(picture, windows) if windows else picture, THUMBNAIL_WIDTH)))
        if len(cards) < PAGE_CARDS:
            small = {view: thumbnail(p, THUMBNAIL_WIDTH) for view, p in views.items()}
            cards.append(Card(frame.id, look.picks, windows, picture.size, small))
        embeddings.update(zip(look.picks, look.embeddings, strict=True))
    if not any("gradient" in card.views for card in cards):
        console.print("no norm maps: what follows this model's last layer does not define them")

    atomic.write_bytes(out / "contact_sheet.png", encoded(contact_sheet(sheet), "png"))
    xml = cvat_xml(annotated, classes, colours)
    atomic.write_bytes(out / "cvat.zip", _archive(out, xml, [frame.name for frame in annotated]))
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
        atomic.write_text(out / "left_out.csv", _csv(missing))
    atomic.write_text(out / "picks.csv", _csv(rows))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


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


def _paths(out: Path, id: str) -> tuple[str, Path, Path, Path]:
    """A frame's name in import files and its image, mask and norm map; pictures of one folder that differ in their
    extension alone stay apart, as every name but the image's is the whole name plus an extension."""
    name = "/".join(part for part in id.split("/") if part not in ("", ".", ".."))
    if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
        name += ".png"  # a frame of a video
    return name, out / "images" / name, out / "masks" / f"{name}.png", out / "norm_maps" / f"{name}.jpg"


def _original(look: Look) -> bytes:
    """The picture's own file; a video's frame as PNG."""
    if look.frame.timestamp is None:
        return look.frame.path.read_bytes()
    return encoded(Image.fromarray(look.image), "png")


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


def _archive(out: Path, xml: str, names: Sequence[str]) -> bytes:
    """CVAT's import: annotations.xml beside images/. Equal contents give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("annotations.xml"), xml, zipfile.ZIP_DEFLATED)
        for name in names:
            archive.writestr(zipfile.ZipInfo(f"images/{name}"), (out / "images" / name).read_bytes())
    return buffer.getvalue()
