"""Every benchmark's JSON names the machine and the versions, and leaves out the raw timings."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

from alges_fast import native_status


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(
        processor=_processor(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=platform.platform(),
        python=platform.python_version(),
        native=native_status(),
        versions={name: found for name in ("torch", "triton", "numpy", "faiss-gpu") if (found := _version(name))},
    )


@pytest.fixture(autouse=True)
def appended(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every result is a line of JSON in $RESULTS at once: one that was measured outlives a run that is stopped."""
    yield
    measured = request.node.funcargs.get("benchmark")
    if "RESULTS" not in os.environ or measured is None or measured.stats is None:
        return
    median = measured.stats.stats.median
    line = {"name": request.node.name, "group": measured.group, "median": median, "extra_info": measured.extra_info}
    with open(os.environ["RESULTS"], "a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"] = {name: benchmark["stats"][name] for name in ("min", "median", "iqr", "rounds")}


def _processor() -> str:
    """The processor's name and widest vectors; Linux knows more than `platform` tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name}, AVX-512" if "avx512f" in fields.get("flags", "").split() else name


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
