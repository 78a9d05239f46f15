"""What a command imports before it does anything: a `status` must not wait for libraries that it does not use."""

import subprocess
import sys

import pytest

HEAVY = (
    "lightning_fabric",
    "matplotlib",
    "scipy",
    "sympy",
    "torch._dynamo",
    "torchmetrics",
    "torchvision",
    "triton",
)
"""Seconds and hundreds of megabytes each, for what trains, draws or exports."""


@pytest.mark.parametrize("module", ["alges_fast", "alges_fast.project.cli", "alges_fast.project.selecting"])
def test_importing_a_command_brings_no_library_that_only_some_steps_use(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    brought = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert brought.stdout.split() == []
