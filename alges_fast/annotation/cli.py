"""The command line of `python -m alges_fast.select`; `--help` for what can be set.

    OUT/picks.csv                       the frames, or windows of frames, in order of picking, and why
    OUT/index.html, contact_sheet.png   to look through
    OUT/images, masks, norm_maps        the picked frames, predicted class ids at their size, gradient mass over them
    OUT/cvat.zip, label_studio/         import files with the predictions as pre-annotations
    OUT/left_out.csv                    what of the pool could not be used, and why (--on_bad_image skip)
    OUT/config.yaml, pool.json, scores/ what the same command continues from

Nothing in OUT is overwritten with other contents: masks that were corrected there stay as they are. With --regions a
mask is 255, which is no class, outside the picked windows.

Of several processes (torchrun) each scores its share of the pool; the first reads and writes OUT and prints for all.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from torch import Tensor, nn

from alges_fast import atomic
from alges_fast.annotation.config import SelectConfig
from alges_fast.annotation.decoded import by_id, decoded_images, pictures_of
from alges_fast.annotation.lists import LabelledPool, class_names, class_weights, refused_of, with_labelled
from alges_fast.annotation.models import load_model, normalisation_in
from alges_fast.annotation.page import Asked
from alges_fast.annotation.picks import Pick, show_picked, show_untrained
from alges_fast.annotation.record import (
    LOCK,
    check_folder,
    check_record,
    known_left_out,
    new_record,
    read_record,
)
from alges_fast.annotation.sources import (
    GAP_SECONDS,
    FrameReader,
    LeftOut,
    frame_sizes,
    list_frames,
    places,
    resized,
)
from alges_fast.annotation.writing import check_names, remove_refused, write_round
from alges_fast.command import arguments_of, as_settings, expand_home, help_shown, one_line, refused, run_command
from alges_fast.data.files import FaultyFile
from alges_fast.data.frame_pool import FramePool
from alges_fast.errors import UserError
from alges_fast.job import Job, device_of, join, leads_job, naming_lost_processes
from alges_fast.last_layer import LastLayer
from alges_fast.models import build_model
from alges_fast.models.features_cache import load_or_fit
from alges_fast.models.frozen import FrozenModel, Trunk, build_trunk
from alges_fast.normalisation import HALF, IMAGENET, UNIT, Normalisation
from alges_fast.pool.errors import CannotContinue, RowsNotWritten
from alges_fast.pool.row_file import fingerprint
from alges_fast.selection import select
from alges_fast.strategies import frame_of, get_strategy
from alges_fast.windows import Window

HELP = """\
usage: python -m alges_fast.select --images POOL [--SETTING VALUE ...]

Choose the next frames to annotate, or windows of frames, and show why. Files
for CVAT and Label Studio, and a page to look through, go to --out.

  --images POOL         a folder of pictures and videos, a list, or one video
  --model MODEL         .pt2, .ts, .safetensors, or package.module:function;
                        without one: the first frames of a new pool
  --n 50                how many frames
  --regions 4x4         windows of frames, worth as many
  --strategy NAME       or your own: path/to/file.py:Class
  --labelled FILE       frames that are annotated already, one a line
  --reject FILE         picks to replace, one a line
  --classes A,B,..      their names
  --image_size 224      side that the model was trained at
  --out DIR             one selection a folder

example:
  python -m alges_fast.select --model model.pt2 --images videos/ --n 20 \\
      --classes background,liver,tool --out runs/next

Under torchrun processes share the pool and pick as one would: docs/survival.md
All settings: --help all. More: docs/select.md, docs/strategies.md
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, choose, write.

    The exit code: 0, 1 where another process of the job has died, 2 for a user's mistake, 130 when interrupted.
    """
    given = sys.argv[1:] if argv is None else argv
    if help_shown(given, HELP, _parser):
        return 0
    logging.basicConfig(format="%(message)s", level=logging.WARNING if leads_job() else logging.CRITICAL)
    return run_command(
        lambda: _run_in_job(given),
        if_out_of_memory="lower --batch_size, then run again",
    )


def parse(argv: Sequence[str]) -> SelectConfig:
    """A configuration from flags, over a YAML file, over SelectConfig's defaults.

    Raises:
        UserError: a flag, key or value that does not exist, or a needed one left out; one line.
    """
    try:
        parsed = _parser().parse_args(arguments_of(argv, SelectConfig))
    except jsonargparse.ArgumentError as error:
        raise refused(error, SelectConfig) from error
    values = {name: value for name, value in parsed.clone(with_meta=False).as_dict().items() if name != "config"}
    if values["images"] is None:
        raise UserError("--images is missing: give it. See --help")
    return expand_home(SelectConfig(**values))


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog="python -m alges_fast.select",
        description=(
            "The next frames to annotate: a trained model chooses them from a pool, and shows why. Without --model the "
            "first frames of a new pool."
        ),
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags override it.")
    parser.add_class_arguments(SelectConfig, fail_untyped=True)
    return parser


def _run_in_job(argv: Sequence[str]) -> int:
    job = Job(join())  # before anything can fail, so that one process alone says what did
    with naming_lost_processes():
        return _run(parse(argv), job, Console(quiet=not job.leads, highlight=False, soft_wrap=True))


def _run(config: SelectConfig, job: Job, console: Console) -> int:
    out = Path(config.out)
    record = job.from_leader(lambda: _record_in(out, config))
    left_out = known_left_out(out, record, config.on_bad_image)
    windows = config.grid is not None
    frames = list_frames(Path(config.images), fps=config.fps, left_out=left_out)
    listed = with_labelled(frames, config.labelled, left_out, windows=windows)
    check_names(out, (frame.id for frame in listed.frames))
    unwanted = refused_of(listed.frames, config.reject, left_out, windows=windows)
    _check_number(config, listed.without(left_out), left_out)
    scorer = _scorer(config)

    sized = windows or config.budget == "outline"
    sizes = frame_sizes(listed.without(left_out).frames, left_out) if sized else {}
    images, maps = _read_pool(config, listed, left_out, scorer, show=job.leads)
    now = new_record(listed, left_out, scorer.weights)
    if record is not None:
        check_record(record, now, config)
    _check_number(config, listed.without(left_out), left_out)

    with contextlib.ExitStack() as held:
        asked = _Choice(config, job, scorer, record or now, listed, images, maps, left_out, unwanted, sizes)
        job.from_leader(lambda: _begin(asked, held, record))
        console.print(asked.summary())
        picks, budget = _choose(asked)
        if not job.leads:
            return 0
        remove_refused(out, unwanted, picks)
        if scorer.model is None:
            shown = show_untrained(picks, maps, config.grid)
        else:
            shown = show_picked(
                scorer.model,
                picks,
                output=get_strategy(config.strategy).embedding,
                class_weights=scorer.class_weights,
                regions=config.grid,
                inputs_of=lambda _, image: scorer.inputs(resized(image, scorer.image_size)[None]),
                device=scorer.device,
                precision=config.precision,
            )
        n_frames = len({pick.frame.id for pick in picks})
        has_norm_maps = write_round(
            out,
            Asked(config.strategy, config.seed, config.images, config.model, config.regions, budget=config.budget),
            scorer.classes,
            picks,
            track(shown, "drawing the picks", total=n_frames, console=Console(stderr=True), transient=True),
            budget=budget,
            left_out=left_out,
            image_prefix=config.image_prefix,
        )
    if scorer.model is not None and not has_norm_maps:
        console.print("no norm maps: what follows this model's last layer does not define them")
    for line in left_out.by_file():
        console.print(escape(f"left out: {line}"))
    what = f"{n_frames} picks" if budget is None else f"{len(picks)} windows of {n_frames} frames picked"
    if config.budget == "outline":
        what += f", with {sum(pick.outline or 0 for pick in picks):,.0f} pixels of predicted outline"
    console.print(escape(f"{what}: {out}/picks.csv   to look through: {out}/index.html"))
    return 0


def _record_in(out: Path, config: SelectConfig) -> dict[str, Any] | None:
    check_folder(out, config)
    return read_record(out)


def _begin(asked: _Choice, held: contextlib.ExitStack, record: Mapping[str, Any] | None) -> None:
    """Take the folder's lock for as long as `held` lasts, and write down what is chosen from."""
    out = Path(asked.config.out)
    if not held.enter_context(atomic.locked(out / LOCK, wait=False)) or read_record(out) != record:
        raise UserError(f"{out}: another process is choosing there: wait until it is done, or choose another --out")
    atomic.write_text(out / "config.yaml", yaml.safe_dump(as_settings(asked.config), sort_keys=False))
    asked.save_record()


@dataclass(frozen=True)
class _Scorer:
    """What scores the pool.

    Attributes:
        model: None where none is trained yet.
        trunk: of the frozen encoder that looks at the pool then; None where nothing needs to.
        weights: of either, as the record knows them.
        transform: makes the model's input of pictures on its device; without a model a strategy sees them as they are.
        image_size: side of the pictures.
    """

    model: nn.Module | None
    trunk: Trunk | None
    weights: str
    device: torch.device
    classes: Sequence[str]
    class_weights: Sequence[float] | None
    batch_size: int
    transform: Callable[[Tensor], Tensor] | None
    image_size: int

    def inputs(self, images: Tensor) -> Tensor:
        """The model's input of pictures (B, 3, S, S) uint8."""
        images = images.to(self.device)
        return images if self.transform is None else self.transform(images)


@dataclass(frozen=True)
class _Choice:
    """What is chosen from, and how.

    Attributes:
        job: the processes that choose together.
        begun: what the selection was begun with, or is begun with now.
        listed: every frame of the pool, what is left out included.
        images: the pictures of those that can be used; None where the strategy does not look at them.
        maps: what a frozen encoder makes of them, where there is no model.
        left_out: what cannot be used, as far as it is known.
        refused: frames and windows that are not to be picked (again).
        sizes: id -> (height, width), where windows are chosen or outlines counted.
    """

    config: SelectConfig
    job: Job
    scorer: _Scorer
    begun: Mapping[str, Any]
    listed: LabelledPool
    images: FramePool | None
    maps: FramePool | None
    left_out: LeftOut
    refused: Sequence[str | Window]
    sizes: Mapping[str, tuple[int, int]]

    def save_record(self) -> None:
        if self.job.leads:
            record = {**self.begun, "left_out": self.left_out.reasons}
            atomic.write_json(Path(self.config.out) / "pool.json", record)

    def summary(self) -> str:
        usable = self.listed.without(self.left_out)
        partly = f" and {usable.n_windows} windows" if usable.n_windows else ""
        n_labelled = len(usable.frames) - usable.n_free
        classes = f"{len(self.scorer.classes)} classes" if self.scorer.model is not None else "no model"
        return f"{len(usable.frames)} frames, {n_labelled}{partly} labelled, {classes}, on {self.scorer.device}"


def _read_pool(
    config: SelectConfig, listed: LabelledPool, left_out: LeftOut, scorer: _Scorer, *, show: bool
) -> tuple[FramePool | None, FramePool | None]:
    """Decode the pool, so that what cannot be read is known before anything is chosen, and let the frozen encoder look
    at it, where there is one. None where the strategy does not look at it."""
    if not (get_strategy(config.strategy).reads_images or config.budget == "outline"):
        return None, None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as bar:
        task = bar.add_task("")

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        frames, images = decoded_images(
            listed.frames, scorer.image_size, left_out, lambda done, total: progress("reading the pool", done, total)
        )
        kept = by_id(frames, images, left_out)
        if scorer.trunk is None:
            return kept, None
        pictures = pictures_of(frames)
        maps = load_or_fit(scorer.trunk, images, pictures=pictures, progress=progress).cached(
            images, progress, pictures
        )
        return kept, by_id(frames, maps, left_out)


def _choose(asked: _Choice) -> tuple[list[Pick], int | None]:
    """The picks, and what there was for windows, in pixels or in pixels of predicted outline."""
    picks, budget = _draw(asked)
    while asked.images is None and (faults := asked.job.from_leader(partial(_faults_of, picks))):
        # Nothing had been read: draw again without them, as if they were not in the pool.
        for id, fault in faults.items():
            asked.left_out.add(id, fault)
        asked.save_record()
        _check_number(asked.config, asked.listed.without(asked.left_out), asked.left_out)
        picks, budget = _draw(asked)
    return picks, budget


def _draw(asked: _Choice) -> tuple[list[Pick], int | None]:
    config, scorer = asked.config, asked.scorer
    usable = asked.listed.without(asked.left_out)
    by_id = {frame.id: frame for frame in usable.frames}
    images = FramePool([*by_id], _never_read) if asked.images is None else asked.images
    sizes: dict[Any, tuple[int, int]] = {id: asked.sizes[id] for id in by_id} if asked.sizes else {}
    how: dict[str, Any] = {
        "budget": config.budget,
        "strategy": config.strategy,
        "seed": config.seed,
        "labelled": usable.labelled,
        "places": places(usable.frames, config.min_gap),
        "sizes": sizes,
        "min_gap": GAP_SECONDS if config.min_gap is None else config.min_gap,
        "class_weights": scorer.class_weights,
        "features": asked.maps,
        "out": Path(config.out) / "scores",
        "resume": True,
        "transform": scorer.transform,
        "batch_size": scorer.batch_size,
        "device": scorer.device,
        "precision": config.precision,
        "progress": asked.job.leads,
        "group": asked.job.group,
    }
    try:
        n, pixels = (None, config.budget_pixels) if config.budget_pixels else (config.n, None)
        chosen = select(scorer.model, images, n, regions=config.grid, pixels=pixels, **how).without(asked.refused)
        picks = [
            Pick(
                by_id[str(frame_of(item))],
                item if isinstance(item, Window) else None,
                chosen.scores.get(item),
                chosen.cost(item),
                chosen.outlines.get(item),
            )
            for item in chosen.ids
        ]
        return picks, None if config.grid is None else chosen.budget
    except CannotContinue as error:
        raise UserError(f"{one_line(error.reason)}: choose another --out") from error
    except ValueError as error:
        raise UserError(one_line(str(error))) from error
    except RowsNotWritten as error:
        raise UserError(
            f"{error.filename} cannot be written ({error.strerror}): make room or choose another --out, then run again"
        ) from error


def _faults_of(picks: Sequence[Pick]) -> dict[str, FaultyFile]:
    """Why picked frames cannot be read, by id."""
    reader, faults = FrameReader(), {}
    for frame in {pick.frame.id: pick.frame for pick in picks}.values():
        try:
            reader.read(frame)
        except FaultyFile as fault:
            faults[frame.id] = fault
    return faults


def _never_read(position: int) -> Tensor:
    raise AssertionError("a strategy whose reads_images is False has asked for an image")


def _scorer(config: SelectConfig) -> _Scorer:
    device = device_of(config.device)
    if config.model is None:
        return _untrained(config, device)

    def build(n_classes: int) -> nn.Module:
        return build_model(
            config.architecture, config.encoder, num_classes=n_classes, head_kernel=config.head_kernel, seed=0
        )

    model, fixed = load_model(
        config.model, image_size=config.image_size, build=build, encoder_weights=config.encoder_weights
    )
    if fixed not in (None, 1):
        raise UserError(f"{config.model}: takes {fixed} frames at a time: export it for one, or for any number")
    model.to(device).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    size = model.side if isinstance(model, FrozenModel) else config.image_size
    try:
        blank = torch.zeros(1, 3, size, size, device=device)
        layer: Any = LastLayer.find(model, blank)
    except Exception as error:  # whatever the user's model does with it
        raise UserError(
            f"{config.model} cannot score frames of --image_size {config.image_size}: {one_line(str(error))[:300]}"
        ) from error
    classes = class_names(config.classes, layer.n_classes, windows=config.grid is not None)
    return _Scorer(
        model=model,
        trunk=None,
        weights=fingerprint(model),
        device=device,
        classes=classes,
        class_weights=class_weights(config.class_weights, classes),
        batch_size=fixed or config.batch_size,
        transform=_normalisation(config, config.model),
        image_size=size,
    )


def _untrained(config: SelectConfig, device: torch.device) -> _Scorer:
    """What looks at a pool before there is a model."""
    trunk = None
    if get_strategy(config.strategy).reads_images:
        assert config.encoder_weights is not None
        trunk = build_trunk(config.encoder, config.encoder_weights).to(device)
    classes = class_names(config.classes, None, windows=config.grid is not None)
    return _Scorer(
        model=None,
        trunk=trunk,
        weights="" if trunk is None else trunk.digest,
        device=device,
        classes=classes,
        class_weights=class_weights(config.class_weights, classes),
        batch_size=config.batch_size,
        transform=None,
        image_size=config.image_size,
    )


def _normalisation(config: SelectConfig, model: str) -> Normalisation:
    if config.normalise == "auto":
        return normalisation_in(model) or IMAGENET
    return {"imagenet": IMAGENET, "half": HALF, "unit": UNIT}[config.normalise]


def _check_number(config: SelectConfig, pool: LabelledPool, left_out: LeftOut) -> None:
    if config.n > pool.n_free:
        less = f" ({len(left_out.reasons)} more are left out: {left_out.by_file()[0]})" if left_out.reasons else ""
        raise UserError(f"--n {config.n}: the pool has {pool.n_free} frames to choose from{less}")
