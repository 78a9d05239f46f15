"""What a backbone that is never trained makes of a pool, made once and kept: from then on the pool's items are maps.

For a backbone of a user's own. Those that come by name have commands that do all of it (`--architecture frozen`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alges_fast.pool.embed import Progress, run_over, validate
from alges_fast.pool.row_file import RowFile, fingerprint, signature
from alges_fast.pool.rows import PoolEmbeddings, Rows, Scored
from alges_fast.pool.source import Batch, Id, Pool, Source, checksums, digest_of_ids, known_ids
from alges_fast.pool.transfer import are_finite, in_parts, to_device, to_host

NAME = "features"


class Features(Sequence[tuple[Id, Tensor]]):
    """(id, map (C, h, w)) of a pool's images: a pool by itself, for a head, and `features` of `select`.

    Attributes:
        ids: in the pool's order.
        values: (N, C, h, w) on the CPU; backed by the file where there is one.
    """

    def __init__(self, maps: PoolEmbeddings) -> None:
        self.ids = maps.ids
        self.values = maps.values

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return self.ids[index], self.values[index]


def frozen_features(
    trunk: Callable[[Tensor], Tensor],
    pool: Pool,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    dtype: torch.dtype = torch.float16,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    precision: str | None = None,
    channels_last: bool = True,
    transform: Callable[[Tensor], Tensor] | None = None,
    progress: bool | Progress = True,
) -> Features:
    """Run a pool through a backbone once; a head trained on the maps is then the model, and a round takes seconds.

    Args:
        trunk: a module, which runs in eval mode without gradients and is left as it was, or a function; images
            (B, C, *spatial) to maps (B, C', *grid), all of one size.
        pool, batch_size, precision, channels_last, transform, progress: as for `embed_pool`.
        out: a .npy file for the maps, memory-mapped in the result; ids are kept in `<out>.ids` beside it.
        resume: continue the file that a killed call left at `out`, or read the whole one. Another pool, module,
            transform or type is refused; of a function only its code is looked at.
        dtype: of the maps.
        device: where the trunk is; default its parameters' device, for a function the CPU.

    Returns:
        Features: `embed_pool(head, features)`, `select(head, features, n)`, and before there is a head
        `select(None, pool, n, strategy="typical", features=features)`.

    Raises:
        ValueError: a NaN or infinity, maps of different sizes, or an argument out of range.
        TypeError: a trunk that returns no tensor, or what `embed_pool` raises.
        CannotContinue, FileInUse, RowsNotWritten: of what is at `out`.

    Example:
        >>> backbone = torch.nn.Conv2d(3, 8, 4, stride=4)
        >>> pool = [(f"frame{i}", torch.rand(3, 32, 32)) for i in range(5)]
        >>> frozen_features(backbone, pool, progress=False).values.shape
        torch.Size([5, 8, 8, 8])
    """
    validate(batch_size, precision, resume, out)
    module = trunk if isinstance(trunk, nn.Module) else nn.Module()
    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    device = parameter.device if device is None else torch.device(device)
    source = Source(pool, 0, 1, batch_size)
    files: dict[str, RowFile] = {}
    if out is not None:
        made_by = {
            "output": NAME,
            "trunk": fingerprint(trunk) if isinstance(trunk, nn.Module) else signature(trunk),
            "transform": signature(transform),
            "precision": precision,
            "dtype": str(dtype),
            "images": source.total,
            "ids": None if (known := known_ids(pool)) is None else digest_of_ids(known),
        }
        files[NAME] = RowFile(Path(out), made_by, resume=resume)
    rows = Rows((NAME,), files, skip_bad=False)

    def score(batch: Batch) -> Scored:
        known_by = checksums(batch.images) if files else [0] * len(batch.ids)
        images = to_device(batch.images, device, parameter.dtype, channels_last, transform)
        made = torch.cat([_maps(trunk, part) for part in in_parts(images)])
        return Scored(batch, known_by, *to_host([are_finite(images), made.to(dtype).contiguous()]))

    return Features(run_over(source, rows, score, model=module, device=device, precision=precision, progress=progress))


def _maps(trunk: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    made = trunk(images)
    if not isinstance(made, Tensor) or made.ndim != images.ndim or len(made) != len(images):
        what = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise TypeError(
            f"trunk: must return maps (B, C, *grid) with {images.ndim - 2} spatial axes for {len(images)} images, "
            f"returned {what}"
        )
    return made
