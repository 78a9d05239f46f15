"""The op's registration with torch.library: its schema, what it is without values, and one kernel for every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alges_fast.ops import dispatch
from alges_fast.ops.operands import SCHEMA, Operands

_library = torch.library.Library("alges_fast", "DEF")
_library.define(SCHEMA)
op = torch.ops.alges_fast.pixel_gradients.default


def _run(*arguments: Any) -> list[Tensor]:
    return dispatch.run(Operands(*arguments))


def _allocate(*arguments: Any) -> list[Tensor]:
    return Operands(*arguments).empty()


for _device in ("CPU", "CUDA"):
    _library.impl("pixel_gradients", _run, _device)
# No gradient is defined, and none is wanted: skip autograd rather than record a node that would fail in backward.
_library.impl("pixel_gradients", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_fake("alges_fast::pixel_gradients", _allocate, lib=_library)
