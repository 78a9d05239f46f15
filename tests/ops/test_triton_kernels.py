"""What the interpreter cannot show of the Triton kernels: that they compile for GPUs, and how they cut an image."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import pytest

pytest.importorskip("triton")

from alges_fast.ops.triton_kernels import choose_plan

# Launches become compilations for a GPU that need not be there: the driver only has to name its target.
COMPILE = textwrap.dedent("""
    import json, re, subprocess, sys, tempfile
    import torch, triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_device(self): return 0
        def get_current_stream(self, device): return 0
        def get_current_target(self): return GPUTarget("cuda", int(sys.argv[1]), 32)

    triton.runtime.driver.set_active(Driver())
    launch, shared, stack, text = JITFunction.run, {}, {}, {}

    def compile(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        name = self.fn.__name__
        shared[name] = max(shared.get(name, 0), kernel.metadata.shared)
        with tempfile.NamedTemporaryFile() as cubin:
            cubin.write(kernel.asm["cubin"])
            cubin.flush()
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", cubin.name]
            usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        stack[name] = max(stack.get(name, 0), *map(int, re.findall(r"STACK:(\\d+)", usage)))
        text[name] = kernel.asm["ttir"], kernel.asm["ptx"]

    JITFunction.run = compile
    from alges_fast.ops import triton_kernels
    from alges_fast.ops.operands import Operands, mask_of
    from alges_fast.ops.outputs import OUTPUTS

    def on_gpu(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    for batch, channels, n_classes, spatial, kernel, dtype, given, outputs in json.loads(sys.argv[2]):
        dtype = getattr(torch, dtype)
        maps = on_gpu(batch, n_classes, *spatial, dtype=dtype) if given else None
        valid = on_gpu(batch, *spatial, dtype=torch.bool) if given else None
        operands = Operands(
            on_gpu(batch, channels, *spatial, dtype=dtype), on_gpu(n_classes, channels, *kernel),
            on_gpu(n_classes), maps, maps, valid, mask_of(outputs or OUTPUTS),
        )
        triton_kernels.bind(operands)(operands)
    print(json.dumps([shared, stack, text]))
""")
CALLS = [
    (8, 16, 13, (224, 224), (), "float32", False, ("image", "semantic")),
    (8, 256, 19, (128, 128), (), "bfloat16", False, ("image", "semantic")),
    (8, 256, 19, (128, 128), (), "float32", False, ("image", "semantic")),
    (8, 16, 13, (127, 129), (3, 3), "float16", False, ("image", "semantic")),
    (8, 64, 19, (61, 67), (), "float32", True, None),
    (2, 512, 21, (28, 28), (3, 3), "bfloat16", True, None),
    (2, 2048, 150, (32, 32), (), "float32", False, None),
    (2, 256, 100, (32, 32), (), "float32", False, None),
    (2, 64, 1000, (16, 16), (), "float32", False, None),
]


def compiled(
    architecture: int, calls: Sequence[tuple[object, ...]]
) -> tuple[dict[str, int], dict[str, int], dict[str, list[str]]]:
    """Of each kernel that the calls need: the most shared memory and the largest stack frame, bytes, and the last one's
    code, for Triton and for the GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(architecture), json.dumps(calls)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shared, stack, text = json.loads(done.stdout)
    return shared, stack, text


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_kernels_compile_for_a_gpu_and_fit_its_shared_memory(architecture: int) -> None:
    shared, _, _ = compiled(architecture, CALLS)
    assert set(shared) == {"_one_pass", "_residuals", "_outer_sums", "_finish"}
    assert max(shared.values()) <= 99 * 1024, shared  # the smallest of compute capability 8 and later


def test_float32_layers_of_up_to_128_channels_keep_to_registers() -> None:
    calls = [(8, d, 19, (128, 128), (), "float32", False, ("image", "semantic")) for d in (16, 32, 64, 128)]
    assert compiled(90, calls)[1]["_one_pass"] <= 16  # bytes a thread


@pytest.mark.parametrize("channels", [255, 256])
def test_float32_products_add_up_at_most_64_channels_inside_the_tensor_core(channels: int) -> None:
    """Its sums are cut, not rounded: one chain over 255 channels took up to 1.27 of the error budget by simulation."""
    _, _, text = compiled(90, [(2, channels, 19, (64, 64), (), "float32", False, ("image", "semantic"))])
    added = [int(found) for found in re.findall(r"tt\.dot .*?\* tensor<(\d+)x", text["_one_pass"][0])]
    assert added
    assert max(added) <= 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels", [16, 64, 256])
def test_planar_features_are_loaded_16_bytes_at_a_time(channels: int, dtype: str) -> None:
    _, _, text = compiled(90, [(8, channels, 13, (224, 224), (), dtype, False, ("image", "semantic"))])
    ptx = text["_one_pass"][1]
    assert re.search(r"cp\.async\.cg\.shared\.global|ld\.global\.v4\.b32", ptx)  # 16 bytes each
    assert not re.search(
        r"ld\.global\.[bu]16|cp\.async\.ca", ptx
    )  # what is left, 4 bytes at a time, are weight and bias


def test_one_kernel_serves_maps_of_many_sizes() -> None:
    """Compiled for whether the number of pixels is a multiple of 16, and for nothing else of a map."""
    sizes = ((64, 64), (224, 224), (31, 33), (65, 67), (512, 48))
    calls = [(2, 16, 13, size, (), "bfloat16", False, ("image", "semantic")) for size in sizes]
    code = {compiled(90, [each])[2]["_one_pass"][1] for each in calls}
    assert len(code) == 2


def test_a_plan_covers_the_image_within_its_scratch_whatever_the_batch() -> None:
    classes, channels = (1, 13, 21, 150, 256, 1000), (1, 16, 144, 256, 2048, 18432)
    maps = (1, 129 * 130, 224 * 224, 2048 * 2048)
    for sizes in itertools.product(classes, channels, maps, (0, 1, 2), (False, True)):
        n_classes, n_channels, pixels, sums, float32 = sizes
        alone = choose_plan(1, n_classes, n_channels, pixels, sums=sums, float32=float32)
        plan = choose_plan(1000, n_classes, n_channels, pixels, sums=sums, float32=float32)
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
