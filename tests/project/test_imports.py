"""What a command imports before it does anything: a `status` must not wait for libraries that it does not use."""

import subprocess
import sys

import pytest

HEAVY = ("lightning_fabric", "matplotlib", "scipy", "sympy", "torch._dynamo", "torchmetrics", "torchvision", "triton")
"""Seconds and hundreds of megabytes each, for what trains, draws or exports."""


FIND = """
import torch
from alges_fast.last_layer import LastLayer
LastLayer.find(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Upsample(scale_factor=2)), torch.ones(1, 3, 8, 8))
"""


@pytest.mark.parametrize(
    "code",
    ["import alges_fast", "import alges_fast.project.cli", "import alges_fast.project.selecting", FIND],
    ids=["package", "project", "select", "looking at a model"],
)
def test_a_command_brings_no_library_that_only_some_steps_use(code: str) -> None:
    code += f"\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    brought = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert brought.stdout.split() == []
