"""What the interpreter cannot show of the Triton kernels: that they compile for GPUs, and how they cut an image."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

pytest.importorskip("triton")

from alges_fast.ops.triton_kernels import choose_plan

# Launches become compilations for a GPU that need not be there: the driver only has to name its target.
COMPILE = textwrap.dedent("""
    import json, sys
    import torch, triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_device(self): return 0
        def get_current_stream(self, device): return 0
        def get_current_target(self): return GPUTarget("cuda", int(sys.argv[1]), 32)

    triton.runtime.driver.set_active(Driver())
    launch, shared = JITFunction.run, {}

    def compile(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        shared[self.fn.__name__] = max(shared.get(self.fn.__name__, 0), kernel.metadata.shared)

    JITFunction.run = compile
    from alges_fast.ops import triton_kernels
    from alges_fast.ops.pixel_gradients import OUTPUTS, _canonical

    def on_gpu(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    for batch, channels, n_classes, spatial, kernel, dtype, given, outputs in json.loads(sys.argv[2]):
        dtype = getattr(torch, dtype)
        maps = on_gpu(batch, n_classes, *spatial, dtype=dtype) if given else None
        valid = on_gpu(batch, *spatial, dtype=torch.bool) if given else None
        problem = _canonical(
            on_gpu(batch, channels, *spatial, dtype=dtype), on_gpu(n_classes, channels, *kernel),
            on_gpu(n_classes), maps, maps, valid, frozenset(outputs or OUTPUTS),
        )
        triton_kernels.run(problem)
    print(json.dumps(shared))
""")
CALLS = [
    (8, 16, 13, (224, 224), (), "float32", False, ("image", "semantic")),
    (8, 256, 19, (128, 128), (), "bfloat16", False, ("image", "semantic")),
    (8, 256, 19, (128, 128), (), "float32", False, ("image", "semantic")),
    (8, 16, 13, (127, 129), (3, 3), "float16", False, ("image", "semantic")),
    (8, 64, 19, (61, 67), (), "float32", True, None),
    (2, 512, 21, (28, 28), (3, 3), "bfloat16", True, None),
    (2, 2048, 150, (32, 32), (), "float32", False, None),
]


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_kernels_compile_for_a_gpu_and_fit_its_shared_memory(architecture: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(architecture), json.dumps(CALLS)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shared = json.loads(done.stdout)
    assert set(shared) == {"_one_pass", "_residuals", "_outer_sums", "_finish"}
    assert max(shared.values()) <= 99 * 1024, shared  # the smallest of compute capability 8 and later


def test_a_plan_covers_the_image_within_its_scratch_whatever_the_batch() -> None:
    classes, channels = (1, 13, 21, 150, 256, 1000), (1, 16, 144, 256, 2048, 18432)
    for sizes in itertools.product(classes, channels, (1, 129 * 130, 224 * 224, 2048 * 2048), (0, 1, 2)):
        n_classes, n_channels, pixels, sums = sizes
        alone = choose_plan(1, n_classes, n_channels, pixels, sums=sums)
        plan = choose_plan(1000, n_classes, n_channels, pixels, sums=sums)
        assert replace(plan, images=1) == replace(alone, images=1), sizes
        assert (plan.chunks - 1) * plan.chunk_pixels < pixels <= plan.chunks * plan.chunk_pixels, sizes
        assert plan.one_pass or plan.segments * plan.segment_pixels >= plan.chunk_pixels, sizes
        assert plan.tile_classes >= n_classes, sizes

        scratch = plan.chunks * plan.tiles_in_flight * 4 * (n_classes + 3 + n_classes + 1)
        if plan.chunks > 1:
            scratch += plan.chunks * 4 * n_classes * n_channels * sums
        if not plan.one_pass:
            scratch += plan.chunks * plan.segment_pixels * 4 * (plan.tile_classes + 1)
        assert 1 <= plan.images <= 1000, sizes
        assert plan.images * scratch <= 16 * 2**20, sizes
