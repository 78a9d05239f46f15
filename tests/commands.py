"""Commands, `alges_fast.run` by default, in processes forked from one that has imported everything: a kill is cheap."""

from __future__ import annotations

import csv
import importlib
import json
import multiprocessing
import os
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["alges_fast.run", "segmentation_models_pytorch", "matplotlib.backends.backend_agg"])

SMALL = [
    *("--dataset", "folder", "--ignore_index", "11", "--image_size", "32", "--rounds", "3", "--init_size", "2"),
    *("--query_size", "1", "--epochs", "1", "--batch_size", "4", "--architecture", "linknet"),
    *("--encoder", "mobilenet_v2", "--device", "cpu"),
]

TINY_MODEL = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, 3, 1))
"""


def start(log: Path, argv: list[str], environment: dict[str, str], command: str = "alges_fast.run") -> BaseProcess:
    """Start the command, the `main` of a module, where the environment's PWD says; it prints to the file `log`."""
    process = CONTEXT.Process(target=_run, args=(str(log), argv, environment, command), daemon=True)
    process.start()
    return process


def start_group(
    folder: Path, argv: list[str], environment: dict[str, str], size: int, command: str = "alges_fast.run"
) -> list[BaseProcess]:
    """Start the command as `size` processes of one job, as torchrun does; rank r prints to folder/r.log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**environment, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folder.mkdir(exist_ok=True)
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [start(folder / f"{rank}.log", argv, ranks[rank], command) for rank in range(size)]


def finish(process: BaseProcess, timeout: float = 120) -> int | None:
    process.join(timeout)
    return process.exitcode


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a command that came to nothing else."""
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    return error


def _run(log: str, argv: list[str], environment: dict[str, str], command: str) -> None:
    import torch

    main = importlib.import_module(command).main
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    os.chdir(environment.get("PWD", "."))
    torch.set_num_threads(1)
    raise SystemExit(main(argv))


def rows(out: Path) -> list[dict[str, str]]:
    """Rows of results.csv without its timings."""
    with (out / "results.csv").open() as file:
        return [_timeless(row) for row in csv.DictReader(file)]


def contents(out: Path) -> dict[str, Any]:
    """Every round's file by its name under out: parsed and without timings, the weights as bytes."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        if path.suffix == ".safetensors"
        else _timeless(json.loads(path.read_text()))
        for path in sorted(out.glob("*/seed*/round*/*"))
    }


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.endswith("_seconds")}
