"""Exports of every kind, damaged in every way: flip, cut, swap, nest, and what is known to hurt.

    python -m tests.annotation.fuzz --inputs 100000

Each input is imported into a project in a process of its own kind, some thousand at a time, and must be read or be one
line: no other exception, no more than a time and a memory, nothing written but the project, and an import that failed
leaves every byte of that as it was. What breaks a rule is printed with the bytes that did, and kept.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 20
"""Of the processor, most that an input may take."""
MEGABYTES = 500
"""Most that an input may take beside the libraries, which are there before any."""
TOGETHER = 2000
NAMES = ("one/frame_1.png", "one/frame_2.png", "two/frame_1.png")
SIZE = (12, 16)
CLASSES = ("liver", "große Ader", "tool")

HURTS = (
    b"", b"\0", b"\xff\xfe", b"-1", b"1e999", b"-1e308", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"[[[[[[",
    b'"%99999d"', b"9" * 5000, b"0, " * 3000, b"&lt;", b"&e;", b"<!DOCTYPE a>", b"<a/>" * 300, b'{"a":' * 300,
    b"../../", b"/", b"C:\\", b"?d=", b"http://[", b"\x1b[2J", b"\n", b"=1+1", b"\xf0\x9f\xa9\xba", b"PK\x01\x02",
    b"PK\x05\x06", b"\x7f\xff\xff\xff", b"IHDR", b"IDAT", b"annotate", b"refused", b"-0", b"1_0", b"2147483648",
)  # fmt: skip


def kinds() -> dict[str, tuple[str, bytes]]:
    """Real exports: name -> (file, contents)."""
    import numpy as np
    from PIL import Image

    from alges_fast.annotation.exports import AnnotatedFrame, cvat_xml, label_studio_tasks
    from alges_fast.data.loading import palette
    from alges_fast.windows import Window

    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 3, (3, 4)).repeat(4, 0).repeat(4, 1).astype(np.uint8) for _ in NAMES]
    windows = [[], [Window(NAMES[1], 4, 4, 8, 8)], []]
    sent = [AnnotatedFrame(*of) for of in zip(NAMES, masks, (1.0, 0.5, 0.2), windows, strict=True)]
    xml = cvat_xml(sent, CLASSES, palette(3)).replace(
        "</annotations>",
        '<image id="9" name="x/one/frame_3.png" width="16" height="12"><tag label="refused"/></image></annotations>',
    )
    xml = xml.replace(
        "</image>",
        '<polygon label="tool" points="1.5,2;9,3;4,11.25" z_order="2"/><box label="liver" xtl="1" ytl="1" xbr="7" '
        'ybr="9" rotation="30"/><ellipse label="tool" cx="8" cy="6" rx="3" ry="5" rotation="10"/></image>',
        1,
    )
    tasks = json.loads(label_studio_tasks(sent, CLASSES, image_prefix="/data/local-files/?d=", model_version="m"))
    more = [
        ("polygonlabels", {"points": [[10, 10], [80.5, 20], [40, 90]]}),
        ("rectanglelabels", {"x": 5, "y": 5, "width": 30, "height": 50, "rotation": 20}),
        ("ellipselabels", {"x": 50, "y": 50, "radiusX": 20, "radiusY": 30, "rotation": 5}),
    ]
    common = {"original_width": 16, "original_height": 12, "image_rotation": 0}
    results = [{"type": kind, **common, "value": {**value, kind: ["tool"]}} for kind, value in more]
    done = [{"data": t["data"], "annotations": [{"id": 1, "updated_at": "2026", **t["predictions"][0]}]} for t in tasks]
    done[0]["annotations"][0]["result"] += results
    done[2]["annotations"].append({"id": 2, "was_cancelled": True, "result": []})

    def picture(values: Any, kind: str, mode: str | None = None) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(values)
        if mode == "P":
            image = image.convert("P")
        image.save(buffer, kind, **({"lossless": True} if kind == "webp" else {}))
        return buffer.getvalue()

    colours = np.array(palette(3), np.uint8)
    label_map = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + "".join(
        f"{name}:{','.join(map(str, rgb))}::\n" for name, rgb in zip(CLASSES, colours.tolist(), strict=True)
    )
    webp = picture(np.stack([masks[0]] * 3, -1), "webp")
    indexed = picture(masks[1], "png", "P")
    segmentation = {f"SegmentationClass/{n}": picture(colours[m], "png") for n, m in zip(NAMES, masks, strict=True)}
    return {
        "CVAT's XML": ("annotations.xml", xml.encode()),
        "CVAT's zip": ("job.zip", zipped({"annotations.xml": xml.encode()})),
        "Label Studio": ("tasks.json", json.dumps(done).encode()),
        "segmentation masks": ("masks.zip", zipped({"labelmap.txt": label_map.encode(), **segmentation})),
        "label map": ("masks.zip labelmap.txt", zipped({"labelmap.txt": label_map.encode(), **segmentation})),
        "PNG": ("ids.zip one/frame_1.png", zipped({NAMES[0]: picture(masks[0], "png"), NAMES[1]: indexed})),
        "BMP": ("ids.zip one/frame_1.bmp", zipped({"one/frame_1.bmp": picture(masks[0], "bmp")})),
        "TIFF": ("ids.zip one/frame_1.tif", zipped({"one/frame_1.tif": picture(masks[0], "tiff")})),
        "WEBP": ("ids.zip one/frame_1.webp", zipped({"one/frame_1.webp": webp})),
        "zip of masks": ("ids.zip", zipped({n: picture(m, "png") for n, m in zip(NAMES, masks, strict=True)})),
    }


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    return buffer.getvalue()


def damaged(contents: bytes, damage: list[tuple[str, float, float, int]], others: list[bytes]) -> bytes:
    """Contents with so much done to them: (what, where, how much, a number)."""
    for what, where, much, number in damage:
        at = int(where * len(contents))
        size = min(1 + int(much**4 * 200), len(contents) - at)
        before, part, after = contents[:at], contents[at : at + size], contents[at + size :]
        if what == "flip":
            contents = before + bytes([part[0] ^ 1 << number % 8]) + part[1:] + after if part else contents
        elif what == "byte":
            contents = before + bytes([number % 256]) + part[1:] + after
        elif what == "cut":
            contents = before + after
        elif what == "end":
            contents = before
        elif what == "swap":
            other = number % (len(after) + 1)
            contents = before + after[other : other + size] + after[:other] + part + after[other + size :]
        elif what == "nest":
            contents = before + part * (1 + number % 50) + part + after
        elif what == "hurt":
            contents = before + HURTS[number % len(HURTS)] + (after if number & 1 else part + after)
        elif what == "graft":
            other_file = others[number % len(others)]
            start = number % (len(other_file) + 1)
            contents = before + other_file[start : start + size * 10] + part + after
        contents = contents[: 1 << 20]
    return contents


def inputs(kind: str, all_kinds: dict[str, tuple[str, bytes]]) -> Any:
    """A strategy of (file's name, contents)."""
    from hypothesis import strategies as st

    file, whole = all_kinds[kind]
    others = [contents for _, contents in all_kinds.values()]
    name, _, member = file.partition(" ")
    ways = st.sampled_from(("flip", "byte", "cut", "end", "swap", "nest", "hurt", "graft"))
    fraction = st.floats(0, 1, exclude_max=True)
    damage = st.lists(st.tuples(ways, fraction, fraction, st.integers(0, 2**31 - 1)), min_size=1, max_size=4)

    def made(of: list[tuple[str, float, float, int]]) -> tuple[str, bytes]:
        if not member:
            return name, damaged(whole, of, others)
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:  # a sound zip around a damaged member
            members = {each: archive.read(each) for each in archive.namelist()}
        return name, zipped({**members, member: damaged(members[member], of, others)})

    return damage.map(made)


def contents_of(root: Path) -> dict[str, bytes]:
    """Files by their path, but for what hypothesis itself writes."""
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(".hypothesis/")}


def batch(kind: str, seed: int, n: int) -> dict[str, Any]:
    """Import so many inputs of a kind, in a folder made for it; what came of it."""
    import shutil
    import warnings

    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from PIL import Image

    from alges_fast.errors import UserError
    from alges_fast.project.config import ProjectConfig
    from alges_fast.project.folder import opened
    from alges_fast.project.importing import ImportSettings, import_exports

    warnings.simplefilter("ignore")
    here = Path.cwd()
    for name in (*NAMES, "one/frame_3.png"):
        (here / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(here / "pool" / name)
    all_kinds = kinds()
    for file, whole in all_kinds.values():  # the whole ones are read: damage is what the rest differ by
        shutil.rmtree(here / "p", ignore_errors=True)
        ProjectConfig(str(here / "pool"), CLASSES).write(here / "p")
        (here / file.partition(" ")[0]).write_bytes(whole)
        with opened(here / "p") as project:
            assert import_exports(project, [here / file.partition(" ")[0]], ImportSettings()) is not None, file
        (here / file.partition(" ")[0]).unlink()
    shutil.rmtree(here / "p")
    ProjectConfig(str(here / "pool"), CLASSES).write(here / "p")
    with opened(here / "p"):
        pass
    empty = contents_of(here)
    came = {"inputs": 0, "read": 0, "refused": 0, "nothing new": 0, "slowest": 0.0}

    def late(*_: Any) -> None:
        raise TimeoutError(f"over {SECONDS} s")

    signal.signal(signal.SIGPROF, late)

    @seeded(seed)
    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(inputs(kind, all_kinds))
    def imported(given: tuple[str, bytes]) -> None:
        name, contents = given
        path = here / name
        path.write_bytes(contents)
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        taken, line = None, None
        try:
            with opened(here / "p") as project:
                taken = import_exports(project, [path], ImportSettings())
        except UserError as error:
            line = str(error)
        except BaseException:
            Path(os.environ.get("FUZZ_KEEP", ".")).joinpath(f"breaks-{seed}-{name}").write_bytes(contents)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        came["refused" if line is not None else "nothing new" if taken is None else "read"] += 1
        if line is not None:
            assert line.replace("\u00a0", "").replace("\u3000", "").isprintable(), line
            assert len(line) < 2100
            assert name in line, line
            assert "could not be understood" not in line, line  # the border is a net, and nothing should reach it
        came["slowest"] = max(came["slowest"], time.process_time() - began)
        came["inputs"] += 1
        path.unlink()
        found = contents_of(here)
        outside = {file: data for file, data in found.items() if not file.startswith("p/")}
        assert outside == {file: data for file, data in empty.items() if not file.startswith("p/")}
        if taken is None:
            assert found == empty
        else:
            shutil.rmtree(here / "p" / "rounds")
            shutil.rmtree(here / "p" / "labels", ignore_errors=True)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    imported()
    came["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    assert came["megabytes"] <= MEGABYTES, came
    return came


def run(n_inputs: int | None, seconds: float, seed: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Batches of all kinds in turn, each in a process of its own, until there were so many inputs or so much time.

    Raises:
        AssertionError: a batch that broke a rule, with what it said.
    """

    context = multiprocessing.get_context("fork")
    keep = os.getcwd()
    names = list(kinds())
    total: dict[str, Any] = {"inputs": 0, "read": 0, "refused": 0, "nothing new": 0, "slowest": 0.0, "megabytes": 0.0}
    began, number = time.monotonic(), 0
    while (n_inputs is None or total["inputs"] < n_inputs) and time.monotonic() - began < seconds:
        kind = names[number % len(names)]
        n = TOGETHER if n_inputs is not None else 100
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_batch, args=(theirs, folder, keep, kind, seed + number, n))
            process.start()
            theirs.close()
            try:
                came = ours.recv()
            except EOFError:
                came = f"killed, {process.exitcode}"
            process.join()
        assert isinstance(came, dict), f"{kind}, seed {seed + number}: {came}"
        for name, value in came.items():
            total[name] = max(total[name], value) if name in ("slowest", "megabytes") else total[name] + value
        number += 1
        say(f"{kind}, seed {seed + number - 1}: {came}")
    return {**total, "batches": number, "seconds": round(time.monotonic() - began)}


def _batch(channel: Any, folder: str, keep: str, kind: str, seed: int, n: int) -> None:
    """`batch` in a process that was forked for it; what came of it goes through the channel."""
    os.chdir(folder)
    os.environ["FUZZ_KEEP"] = keep
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    try:
        channel.send(batch(kind, seed, n))
    except BaseException:
        channel.send(traceback.format_exc()[-6000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, help="how many; without it as many as fit the time")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(run(given.inputs, given.seconds, given.seed))


if __name__ == "__main__":
    main()
