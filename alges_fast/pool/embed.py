"""Score a whole pool of images at the speed of the model's forward pass: `embed_pool`.

The model runs up to its last layer and the fused op does the rest. Images go through in pool order, one row per image;
a rank of a distributed run takes every world_size-th image, so no image is scored twice to fill a batch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from alges_fast.last_layer import OUTLINE, LastLayer, evaluating, unwrapped
from alges_fast.losses import Loss
from alges_fast.ops import check_outputs
from alges_fast.ops.outputs import TABLE
from alges_fast.pool.row_file import RowFile, fingerprint, signature
from alges_fast.pool.rows import PoolEmbeddings, Rows, Scored, finite_rows
from alges_fast.pool.source import Batch, Id, Pool, Source, checksums, digest_of_ids, known_ids
from alges_fast.pool.transfer import (
    PRECISIONS,
    are_finite,
    autocast_to,
    in_parts,
    keep_freed_memory,
    to_device,
    to_host,
)

Progress: TypeAlias = Callable[[int, "int | None"], None]
Keep: TypeAlias = Callable[[Sequence[Id], dict[str, Tensor]], dict[str, Tensor]]


def embed_pool(
    model: nn.Module,
    pool: Pool,
    *,
    output: str | Sequence[str] = "image",
    batch_size: int = 16,
    last_layer: LastLayer | str | None = None,
    loss: Loss | None = None,
    regions: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    precision: str | None = None,
    channels_last: bool = True,
    transform: Callable[[Tensor], Tensor] | None = None,
    backend: str | None = None,
    progress: bool | Progress = True,
    out: str | Path | None = None,
    resume: bool = False,
    on_nan: str = "raise",
    rank: int | None = None,
    world_size: int | None = None,
    group: Any = None,
    keep: Keep | None = None,
) -> PoolEmbeddings:
    """Gradient embeddings or uncertainty scores of every image of a pool, in one pass of the model.

    The model runs in eval mode without gradients and is left as it was. Results do not depend on `batch_size` beyond
    what the model's own kernels do.

    Args:
        model: see `LastLayer.find`; already on its device.
        pool: a sequence of images (C, H, W) or of (id, image) pairs, a tensor or array (N, C, H, W), or a DataLoader
            that gives batches of images or (ids, images). Images are uint8 or floating. Where no ids are given an
            image's id is its position, so a DataLoader that takes images in an order of its own must give ids.
        output: a field of `PixelGradients`, `outline` (see `LastLayer.measure`), or several of these.
        batch_size: images per forward pass on a GPU, at most that on the CPU, where fewer large images go through at
            once are faster; a DataLoader has its own.
        last_layer: a `LastLayer`, or its name; default `LastLayer.find` on the first image.
        loss: as for `LastLayer.pixel_gradients`.
        regions: rows R and columns C of a grid of windows: outputs are those of `LastLayer.window_gradients`, and an
            image's row of values has an axis of R C windows first.
        device: where the model is; default its parameters' device.
        precision: "32-true", "bf16-mixed" or "16-mixed" (autocast); default the caller's autocast state.
        channels_last: memory format of the batches, the faster one for convolutions (for volumes on CUDA alone).
        transform: applied to every batch on the device, such as `alges_fast.data.to_input`. Without it uint8 images
            are divided by 255.
        backend: as for `pixel_gradients`.
        progress: a bar (where rich is installed), or a callable of (images done, images in all or None).
        out: a .npy file for the values, memory-mapped in the result; ids are kept in `<out>.ids` beside it. For several
            outputs a folder, with a file for each. Every rank needs an `out` of its own.
        resume: continue the files a killed call left at `out`. The last images in them are read again: those of another
            pool, model, loss or transform are refused.
        on_nan: "raise" stops at the first batch with a NaN or infinity and names its images; "skip" leaves those images
            out and logs their ids.
        rank, world_size: score the images rank, rank + world_size, ... only.
        group: a torch.distributed group to take rank and world_size from.
        keep: what is kept of a batch in the place of its outputs, where these would take too much memory: a function of
            (ids, name -> (B, ...)) that gives name -> (B, ...), on the CPU. Not with `out`.

    Returns:
        PoolEmbeddings of the images this rank scored.

    Raises:
        ValueError: a duplicate id, a NaN or infinity, images of different sizes where the output depends on the size,
            a DataLoader that leaves images out, or an argument out of range.
        CannotContinue, FileInUse: of what is at `out` (both are ValueErrors).
        TypeError: an item that is neither an image nor an (id, image) pair, or a masked array.
        RowsNotWritten: a file cannot be written (an OSError).
    """
    names = (output,) if isinstance(output, str) else tuple(output)
    _check_names(names)
    validate(batch_size, precision, resume, out)
    if keep is not None and out is not None:
        raise ValueError("keep: what is written to out are the outputs themselves; leave one of the two out")
    if on_nan not in ("raise", "skip"):
        raise ValueError(f"on_nan must be 'raise' or 'skip', got {on_nan!r}")
    rank, world_size = _shard(rank, world_size, group)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    device = parameter.device if device is None else torch.device(device)
    if isinstance(last_layer, LastLayer) and last_layer.model is not unwrapped(model):
        raise ValueError("last_layer was found in another model: LastLayer.find(model, example) finds this one's")
    source = Source(pool, rank, world_size, batch_size)
    files: dict[str, RowFile] = {}
    if out is not None:
        made_by = {
            "model": fingerprint(unwrapped(model)),
            "last_layer": last_layer.name if isinstance(last_layer, LastLayer) else last_layer,
            "loss": signature(loss),
            "transform": signature(transform),
            "precision": precision,
            "shard": [rank, world_size],
            "images": source.total,
            "ids": None if (known := known_ids(pool)) is None else digest_of_ids(known),
            **({} if regions is None else {"regions": list(regions)}),
        }
        paths = [Path(out)] if isinstance(output, str) else [Path(out) / f"{name}.npy" for name in names]
        for name, path in zip(names, paths, strict=True):
            files[name] = RowFile(path, {"output": name, **made_by}, resume=resume)
    rows = Rows(names, files, skip_bad=on_nan == "skip")

    def score(batch: Batch) -> Scored:
        nonlocal last_layer
        known_by = checksums(batch.images) if files else [0] * len(batch.ids)
        as_kept = (
            device.type == "cpu"
            and transform is None
            and loss is None
            and backend in (None, "cpu")
            and isinstance(last_layer, LastLayer)
            and last_layer.reads_as_kept(batch.images, names)
        )
        images = batch.images
        if not as_kept:
            images = to_device(images, device, parameter.dtype, channels_last, transform)
        if not isinstance(last_layer, LastLayer):
            last_layer = LastLayer.find(model, images[:1], name=last_layer)
        parts = []
        for part in (images,) if as_kept else in_parts(images):
            measured = last_layer.measure(part, names, regions=regions, loss=loss, backend=backend)
            parts.append([measured[name] for name in names])
        values = parts[0] if len(parts) == 1 else [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
        if keep is not None:
            kept = keep(batch.ids, dict(zip(names, values, strict=True)))
            rows.names, values = tuple(kept), list(kept.values())
        # Of what is read as it is kept every NaN and infinity shows in the results, so one pass is enough.
        shown = as_kept and not _COUNTS.issuperset(names) and all(bool(finite_rows(v).all()) for v in values)
        finite = torch.ones(len(images), dtype=torch.bool) if shown else are_finite(images)
        return Scored(batch, known_by, *to_host([finite, *values]))

    return run_over(source, rows, score, model=model, device=device, precision=precision, progress=progress)


def run_over(
    source: Source,
    rows: Rows,
    score: Callable[[Batch], Scored],
    *,
    model: nn.Module,
    device: torch.device,
    precision: str | None,
    progress: bool | Progress,
) -> PoolEmbeddings:
    """The rows of all images, those that are not there yet scored with the model in eval mode and without gradients."""
    if device.type == "cpu":
        keep_freed_memory()
    with showing(progress, source.total) as advance, evaluating(model), torch.no_grad(), autocast_to(device, precision):
        rows.fill(source, score, advance)
    return rows.finish()


def validate(batch_size: int, precision: str | None, resume: bool, out: object) -> None:
    """Arguments that all passes over a pool have. Raises ValueError."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if resume and out is None:
        raise ValueError("resume needs out, the file to continue")


_COUNTS = frozenset({OUTLINE, *(name for name, output in TABLE.items() if output.counts)})
"""Outputs in which a NaN or infinity does not show."""


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise ValueError("output must name at least one output")
    check_outputs([name for name in names if name != OUTLINE], "output")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"output: {name!r} is named twice")


def _shard(rank: int | None, world_size: int | None, group: Any) -> tuple[int, int]:
    if group is not None:
        if rank is not None or world_size is not None:
            raise ValueError("give group, or rank and world_size, not both")
        rank, world_size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        if rank < 0:
            raise ValueError("group: this process is not in it, so no share of the pool is its own")
        return rank, world_size
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank and world_size go together, got rank={rank} and world_size={world_size}")
    rank, world_size = rank or 0, 1 if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..world_size - 1, got rank={rank} and world_size={world_size}")
    return rank, world_size


@contextmanager
def showing(progress: bool | Progress, total: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of images just done."""
    if callable(progress):
        report, done = progress, 0

        def count(n: int) -> None:
            nonlocal done
            done += n
            report(done, total)

        yield count
    elif progress and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("scoring the pool"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda n: bar.advance(task, n)
    else:
        yield lambda n: None
