"""A real Label Studio server on 127.0.0.1, with a data folder and a database of its own.

It has an environment of its own too, about 1 GB: `python tests/project/label_studio_server.py` makes it where it is
not there, in $ALGES_FAST_LABEL_STUDIO or the cache folder, and with it an empty database, which takes the server longer
than everything that the tests do with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VERSION = "1.23.2"
USER, PASSWORD = "annotator@example.org", "a password of the tests"


def place() -> Path:
    given = os.environ.get("ALGES_FAST_LABEL_STUDIO")
    return Path(given) if given else Path.home() / ".cache" / "alges_fast" / f"label-studio-{VERSION}"


def missing() -> str | None:
    """Why no server can be started; None where one can."""
    if not (place() / "bin" / "label-studio").exists() or not (place() / "data").is_dir():
        return f"no Label Studio in {place()}: python tests/project/label_studio_server.py makes it"
    return None


@dataclass(frozen=True)
class Server:
    url: str
    key: str


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server over a copy of the empty database; gone afterwards."""
    shutil.copytree(place() / "data", folder)
    with _started(folder, 240) as url:
        yield Server(url, _access_token(url))


def prepare() -> None:
    """Make the environment and the database where they are not there."""
    if missing() is None:
        return
    if not (place() / "bin" / "label-studio").exists():
        subprocess.run([sys.executable, "-m", "venv", place()], check=True)
        pip = [place() / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"label-studio=={VERSION}"], check=True)
    draft = place() / "data.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    with _started(draft, 400):
        pass
    draft.rename(place() / "data")


@contextlib.contextmanager
def _started(data: Path, seconds: float) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [place() / "bin" / "label-studio", "start", "--no-browser", "--internal-host", "127.0.0.1"]
    account = ["--port", str(port), "--username", USER, "--password", PASSWORD]
    environment = {n: value for n, value in os.environ.items() if n not in ("PYTHONPATH", "LABEL_STUDIO_API_KEY")}
    silent = {
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    with (data / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *account],
            env={**environment, **silent, "LABEL_STUDIO_BASE_DATA_DIR": str(data)},
            stdout=log,
            stderr=log,
            preexec_fn=_die_with_parent,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, seconds, data / "server.log")
            yield url
        finally:
            process.kill()
            process.wait()


def _die_with_parent() -> None:
    """Where Linux can do that: tests that are killed leave no server behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _wait(process: subprocess.Popen[bytes], url: str, seconds: float, log: Path) -> None:
    import urllib.error
    import urllib.request

    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.3)
    raise RuntimeError(f"Label Studio did not start: {log.read_text(errors='replace')[-2000:]}")


def _access_token(url: str) -> str:
    """A personal access token, made as a user makes one: after logging in."""
    import httpx

    with httpx.Client(base_url=url, follow_redirects=True, timeout=60) as client:
        form = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', client.get("/user/login/").text)
        given = {"email": USER, "password": PASSWORD, "csrfmiddlewaretoken": form[1]}
        client.post("/user/login/", data=given, headers={"Referer": f"{url}/user/login/"})
        headers = {"X-CSRFToken": client.cookies["csrftoken"], "Referer": url}
        answer = client.post("/api/token/", headers=headers)
        answer.raise_for_status()
        return str(answer.json()["token"])


if __name__ == "__main__":
    prepare()
