"""`pixel_gradients` on the CPU: vectorised C++ (csrc/cpu)."""

from __future__ import annotations

from torch import Tensor

from alges_fast.ops.problem import Problem


def unavailable() -> str | None:
    """Why this backend cannot run on this machine."""
    return "not built"


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot run these inputs."""
    return None


def run(problem: Problem) -> dict[str, Tensor]:
    """All outputs asked for, in canonical shape."""
    raise AssertionError
