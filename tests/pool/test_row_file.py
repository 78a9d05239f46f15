"""The files of `embed_pool`: killed at any instant, damaged, of something else, or in use."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from commands import CONTEXT, finish
from torch import Tensor, nn

from alges_fast import PoolEmbeddings, embed_pool
from alges_fast.losses import focal
from alges_fast.pool import CannotContinue, FileInUse, RowsNotWritten, row_file

N = 11
BAD = 4
"""The image that holds a NaN."""


def make_model(last: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        model[2].bias += last
    return model


def make_pool(seed: int = 1) -> list[tuple[str, Tensor]]:
    images = torch.randn(N, 2, 6, 5, generator=torch.Generator().manual_seed(seed))
    images[BAD, 0, 2, 2] = torch.nan
    return [(f"frame_{i}", image) for i, image in enumerate(images)]


class Listed(list[Any]):
    """A pool that knows its ids without reading an image."""

    @property
    def ids(self) -> list[str]:
        return [name for name, _ in self]


def embed(out: Path, images: Sequence[Any] | None = None, **arguments: Any) -> PoolEmbeddings:
    arguments = {"output": ("image", "entropy"), "batch_size": 2, "on_nan": "skip", **arguments}
    model = arguments.pop("model", None) or make_model()
    return embed_pool(model, images or make_pool(), out=out, progress=False, **arguments)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


class Stopped(BaseException):
    pass


class StopsAt8(list[Any]):
    def __getitem__(self, index: Any) -> Any:
        if index == 8:
            raise Stopped
        return super().__getitem__(index)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """What a run left that was stopped at image 8."""
    with pytest.raises(Stopped):
        embed(tmp_path / "out", StopsAt8(make_pool()))
    return tmp_path / "out"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    embed(tmp_path / "out")
    return tmp_path / "out"


# Killed.


def _embed_and_die(out: str, output: str | tuple[str, ...], line: int, time: int) -> None:
    """Embed the pool, with a SIGKILL where a line of the module is reached for the n-th time."""
    torch.set_num_threads(1)
    left = time

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != row_file.__file__:
            return None
        if event == "line" and frame.f_lineno == line:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    embed(Path(out), output=output, resume=True)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("output", ["image", ("image", "entropy")])
@pytest.mark.parametrize("tries", [4, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_at_any_line(tries: int, output: str | tuple[str, ...], begun: bool, tmp_path: Path) -> None:
    """Calls are killed and continued, in a random order of so many lines; each ends with an undisturbed call's files.

    Every line is as likely, since what happens once a call is as deadly as what happens at every batch. With `begun`
    there are rows already when the first kill comes.
    """

    def run(folder: str, line: int, time: int) -> int | None:
        out = tmp_path / folder / ("image.npy" if output == "image" else "several")
        process = CONTEXT.Process(target=_embed_and_die, args=(str(out), output, line, time), daemon=True)
        process.start()
        return finish(process)

    def files(folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / folder).rglob("*.npy*")}

    assert run("whole", 0, 0) == 0
    assert len(files("whole")) == (2 if output == "image" else 4)
    code = [function.__code__ for function in vars(row_file.RowFile).values() if inspect.isfunction(function)]
    lines = {line for one in code for _, _, line in one.co_lines() if line is not None}
    appended = max(line for _, _, line in row_file.RowFile.append.__code__.co_lines() if line is not None)
    assert run("begun", appended, 4) == -signal.SIGKILL
    instants = [(line, time) for line in sorted(lines) for time in (1, 4)]
    random.Random(0).shuffle(instants)
    fresh = True
    for line, time in [*instants[:tries], (0, 0)]:
        if fresh:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            shutil.copytree(tmp_path / "begun", tmp_path / "out") if begun else (tmp_path / "out").mkdir()
        code_of_exit = run("out", line, time)
        assert code_of_exit in (0, -signal.SIGKILL)
        fresh = code_of_exit == 0
        if fresh:
            assert files("out") == files("whole")


def test_batches_of_a_continued_run_are_those_of_one_never_stopped(tmp_path: Path) -> None:
    """Images of several sizes break batches, and what a batch holds may change the last digits of its rows."""
    sizes = [5, 5, 5, 4, 4, 5, 5, 5, 5, 5, 5]
    images = [(f"frame_{i}", torch.rand(2, 6, size)) for i, size in enumerate(sizes)]
    seen: list[tuple[int, ...]] = []

    def transform(batch: Tensor) -> Tensor:
        seen.append((len(batch), *batch.shape[2:]))
        return batch

    embed(tmp_path / "whole", images, batch_size=4, transform=transform)
    expected, stopped = list(seen), list(images)
    stopped[9] = ("frame_9", torch.zeros(2, 6, 5, dtype=torch.int64))  # an error that comes before the end
    with pytest.raises(TypeError, match="uint8 or floating"):
        embed(tmp_path / "out", stopped, batch_size=4, transform=transform)
    seen.clear()
    embed(tmp_path / "out", images, batch_size=4, transform=transform, resume=True)
    assert seen == expected[-len(seen) :]
    assert len(seen) < len(expected)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_run_reads_its_last_batch_alone(whole: Path) -> None:
    """To see that it is the same pool."""

    class Counted(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    read: list[Any] = []
    before = contents(whole)
    assert embed(whole, Counted(make_pool()), resume=True).ids == embed(whole, resume=True).ids
    assert set(read) == {N - 1}
    assert contents(whole) == before


# Of something else.


OTHERS: dict[str, Callable[[list[tuple[str, Tensor]]], Sequence[Any]]] = {
    "pixels": lambda images: [(name, image + 1) for name, image in images],
    "names": lambda images: [(f"other_{name}", image) for name, image in images],
    "without names": lambda images: [image for _, image in images],
    "one less": lambda images: images[:-1],
    "one more": lambda images: [*images, ("new", images[0][1])],
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("state", ["half", "whole"])
def test_another_pool_is_not_continued(
    state: str, change: Callable[..., Sequence[Any]], request: pytest.FixtureRequest
) -> None:
    out: Path = request.getfixturevalue(state)
    with pytest.raises(CannotContinue, match=r"has changed since .*resume=False|images was 11, now 1[02]"):
        embed(out, change(make_pool()), resume=True)
    assert embed(out, change(make_pool())).positions.tolist() != []


def test_a_pool_in_another_order_is_not_continued_where_it_says_its_ids(tmp_path: Path) -> None:
    images = make_pool()
    embed(tmp_path / "out", Listed(images))
    swapped = [images[1], images[0], *images[2:]]
    with pytest.raises(CannotContinue, match="ids was"):
        embed(tmp_path / "out", Listed(swapped), resume=True)
    assert embed(tmp_path / "out", Listed(images), resume=True).ids[:2] == ("frame_0", "frame_1")


def shifted(batch: Tensor, by: float = 1.0) -> Tensor:
    return batch - by


class Weighted(nn.Module):
    """A loss that prints alike whatever its weights."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 1.0, weight]))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, target, self.weight)


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("loss", None, focal),
        ("loss", Weighted(1.0), Weighted(2.0)),
        ("transform", None, shifted),
        ("transform", lambda batch: batch - 1, lambda batch: batch - 2),
        ("transform", functools.partial(shifted, by=1.0), functools.partial(shifted, by=2.0)),
        ("model", make_model(), make_model(1.0)),
        ("model", make_model(), nn.Sequential(*make_model()[:1], nn.GELU(), *make_model()[2:])),
        ("regions", None, (2, 2)),
        ("precision", None, "bf16-mixed"),
        ("last_layer", None, "2"),
    ],
)
def test_what_makes_other_rows_is_named(name: str, before: Any, now: Any, tmp_path: Path) -> None:
    embed(tmp_path / "out", **{name: before})
    embed(tmp_path / "out", **{name: before}, resume=True)
    with pytest.raises(CannotContinue, match=rf"another model or other arguments \({name} was .*, now .*resume=False"):
        embed(tmp_path / "out", **{name: now}, resume=True)


def test_a_loss_is_known_again_in_another_process() -> None:
    """Where it lies in memory does not matter."""
    code = "import functools; from alges_fast.pool.row_file import signature; from alges_fast.losses import focal; "
    code += "print(signature(functools.partial(focal, gamma=3)), signature(focal))"
    told = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout]
    told.append(f"{row_file.signature(functools.partial(focal, gamma=3))} ")
    assert told[0].startswith(told[1])
    assert " at 0x" not in told[0]


def test_images_left_out_before_the_kill_are_told(half: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CannotContinue, match="made with on_nan='skip', without image 'frame_4'"):
        embed(half, on_nan="raise", resume=True)
    embed(half, resume=True)
    assert "left out 1 images: 'frame_4'" in caplog.text


# Damaged.


def of_an_earlier_version(text: bytes) -> bytes:
    lines = [json.loads(line) for line in text.splitlines()]
    del lines[0]["transform"], lines[0]["images"]
    return "".join(json.dumps(line) + "\n" for line in [lines[0], *(line[:3] for line in lines[1:])]).encode()


def with_garbage(text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join([*lines[:3], b"\x00\x00\n", *lines[3:]])


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
    "rows cut": ("image.npy", lambda rows: rows[:200]),
    "header cut": ("image.npy", lambda rows: rows[:60]),
    "no rows": ("image.npy", lambda rows: b""),
    "garbage for rows": ("image.npy", lambda rows: b"\x00" * 1000),
    "empty list": ("image.npy.ids", lambda text: b""),
    "no list": ("image.npy.ids", lambda text: None),
    "garbage for the list": ("image.npy.ids", lambda text: b"\x00\xff{[\n[1]\n"),
    "garbage in the list": ("image.npy.ids", with_garbage),
    "an earlier version's": ("image.npy.ids", of_an_earlier_version),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("state", ["half", "whole"])
def test_a_damaged_file_is_named_and_left_alone(state: str, damage: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(state)
    file, spoil = DAMAGES[damage]
    left = spoil((out / file).read_bytes())
    (out / file).unlink() if left is None else (out / file).write_bytes(left)
    rows = (out / "image.npy").read_bytes()
    with pytest.raises(CannotContinue, match=r"image\.npy.* resume=False begins anew") as raised:
        embed(out, resume=True)
    assert raised.value.path in (out / "image.npy", out / "image.npy.ids")
    assert str(raised.value.path) in raised.value.reason
    assert "resume=" not in raised.value.reason
    assert (out / "image.npy").read_bytes() == rows
    embed(out)
    embed(out, resume=True)


def test_a_bad_pool_leaves_the_files_alone(whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(TypeError, match="pool must be a sequence"):
        embed(whole, iter(make_pool()))  # type: ignore[arg-type]
    assert contents(whole) == before


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Here: no file of this process grows beyond 500 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(RowsNotWritten, match=r"'.*\.npy(\.ids)?'; resume=True continues") as raised:
            embed(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
    assert raised.value.strerror == os.strerror(errno.EFBIG)
    assert Path(raised.value.filename).is_relative_to(tmp_path / "out")
    embed(tmp_path / "out", resume=True)
    embed(tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# In use.


def test_two_processes_do_not_write_one_file(whole: Path) -> None:
    """As ranks would that were given the same `out`."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(whole / "entropy.npy.ids")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    before = contents(whole)
    for resume in (False, True):
        with pytest.raises(FileInUse, match=r"another process is writing .*entropy\.npy; give every process"):
            embed(whole / "entropy.npy", output="entropy", resume=resume)
    assert contents(whole) == before
    holder.kill()
    holder.communicate()
    assert len(embed(whole, resume=True).ids) == N - 1


def test_what_a_caller_does_to_the_values_stays_out_of_the_file(whole: Path) -> None:
    before = contents(whole)
    found = embed(whole, resume=True)
    expected = found.values.clone()
    found.values.div_(found.values.norm())
    assert contents(whole) == before
    np.testing.assert_array_equal(embed(whole, resume=True).values, expected)


def test_rows_of_zeros_that_a_power_cut_left_are_made_again(whole: Path) -> None:
    """Listed, of the right length, and never written: what a file system may bring back after the power went."""
    before = contents(whole)
    rows = bytearray(before["image.npy"])
    rows[-len(rows) // 3 :] = bytes(len(rows[-len(rows) // 3 :]))
    (whole / "image.npy").write_bytes(rows)
    embed(whole, resume=True)
    assert contents(whole) == before
