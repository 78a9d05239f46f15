"""Chromium worked as a person at a keyboard works it: the few requests of WebDriver that this takes, with no library.

Source: W3C, WebDriver, https://www.w3.org/TR/webdriver/.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

TAB, ENTER, SPACE, SHIFT, RIGHT = "\ue004", "\ue007", "\ue00d", "\ue008", "\ue014"


class Browser:
    """A window of Chromium."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        _ask(f"{self._session}/url", {"url": address})

    def run(self, script: str) -> Any:
        """What the body of a function returns in the page."""
        return _ask(f"{self._session}/execute/sync", {"script": script, "args": []})

    def press(self, *keys: str, holding: str | None = None) -> None:
        """Press and let go of each key."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        if holding is not None:
            strokes = [{"type": "keyDown", "value": holding}, *strokes, {"type": "keyUp", "value": holding}]
        actions = [{"type": "key", "id": "keyboard", "actions": strokes}]
        _ask(f"{self._session}/actions", {"actions": actions})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(_ask(f"{self._session}/screenshot")))


@contextmanager
def browser(folder: Path, width: int = 1200, height: int = 900, *, dark: bool = False) -> Iterator[Browser]:
    """A fresh headless browser, whose profile is in this folder."""
    assert CHROMIUM is not None
    assert DRIVER is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                _ask(f"{address}/status")
                break
            except OSError:
                time.sleep(0.1)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--hide-scrollbars"]
        flags += [f"--window-size={width},{height}"]
        flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
        options = {"goog:chromeOptions": {"binary": CHROMIUM, "args": flags}}
        made = _ask(f"{address}/session", {"capabilities": {"alwaysMatch": options}})
        session = f"{address}/session/{made['sessionId']}"
        try:
            yield Browser(session)
        finally:
            _ask(session, method="DELETE")
    finally:
        driver.kill()
        driver.wait()


def _ask(address: str, body: Any = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["value"]
