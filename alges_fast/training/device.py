"""Where networks are trained and tested, and in which precision."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from alges_fast.job import device_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fabric_on(device: str, precision: str = "32-true") -> Fabric:
    """This process's device and precision.

    Args:
        device: auto, cpu or cuda.
        precision: as fabric names it.

    Raises:
        UserError: cuda is wanted and there is none.
    """
    from lightning_fabric import Fabric

    own = device_of(device)
    if own.type == "cuda":
        # Equal picks from equal seeds: no kernel whose sums depend on the order in which threads arrive.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    return Fabric(accelerator=own.type, devices=[own.index or 0] if own.type == "cuda" else 1, precision=precision)
