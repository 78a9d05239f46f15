"""What goes to a Label Studio server, and to no one else: servers here are small ones that misbehave."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from alges_fast.errors import UserError
from alges_fast.project import ImportSettings, fetch, send
from alges_fast.project.config import ProjectConfig
from alges_fast.project.label_studio import _check_address

pytest.importorskip("label_studio_sdk", reason="label-studio-sdk is not installed")

KEY = "SECRET-0123456789"


@contextlib.contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """An address, and what was asked there."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(f"{self.requestline} {self.headers} {body!r}")
            answer(self)

        do_GET = do_POST = handle_any

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a round that is out."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    root = tmp_path / "p"
    ProjectConfig(str(tmp_path / "pool"), ("a", "b")).write(root)
    for name, text in (
        ("round.json", '{"asked": {"n": 1}, "model": null}'),
        ("picks.csv", "rank,id,frame,x,y,width,height\n1,a.png,a.png,,,,\n"),
        ("label_studio/tasks.json", '[{"data": {"frame": "a.png", "image": "a.png"}, "predictions": []}]'),
        ("label_studio/config.xml", "<View/>"),
        ("images/a.png", "a patient's frame"),
    ):
        path = root / "rounds" / "000" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def refused(project: Path, url: str) -> str:
    with pytest.raises(UserError) as caught:
        send(project, url)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_nothing_follows_a_redirect(project: Path, status: int) -> None:
    def nothing(handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(404)

    with server(nothing) as (elsewhere, arrived):

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Location", elsewhere + handler.path)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with server(redirect) as (url, asked):
            assert "redirects, and nothing is sent on" in refused(project, url)
    assert asked
    assert arrived == []


@pytest.mark.parametrize("end", ["\r", "\n", " x", "\x00", "\u00a0", "é", "\x1b[2J"])
def test_a_key_that_is_none_is_not_used_nor_printed(project: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    if "\x00" in end:  # no environment holds one
        monkeypatch.setattr("os.environ", {"LABEL_STUDIO_API_KEY": KEY + end})
    else:
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY + end)
    with server(lambda handler: handler.send_error(500)) as (url, asked):
        assert "LABEL_STUDIO_API_KEY holds white space or another character" in refused(project, url)
    assert asked == []


def test_an_answer_is_one_line_that_holds_no_key(project: Path) -> None:
    def page(handler: BaseHTTPRequestHandler) -> None:
        body = f"<html>{KEY} {KEY!r}</html>".encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with server(page) as (url, _):
        assert "answers what no Label Studio does" in refused(project, url)
    with server(lambda handler: handler.send_error(403, KEY)) as (url, _):
        assert f"{url}: refuses the key: check" in refused(project, url)


def test_a_page_in_the_place_of_a_token_is_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A personal access token is a JWT, which the SDK exchanges before it asks for anything else."""
    jwt = pytest.importorskip("jwt")
    token = jwt.encode({"exp": 4_000_000_000, "token_type": "refresh"}, "k" * 32)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)

    def page(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "6")
        handler.end_headers()
        handler.wfile.write(b"<html>")

    with server(page) as (url, asked):
        assert "answers what no Label Studio does (JSONDecodeError)" in refused(project, url)
    assert "token/refresh" in asked[0]


OTHER_HOSTS = ("http://labels.example.org", "http://10.0.0.7:8080", "http://localhost.evil.org")
THIS_HOST = ("http://127.0.0.1:8080", "http://localhost", "http://[::1]:80", "http://127.9.9.9")
NO_ADDRESSES = ("p", "http://", "http://[", "http://a:b@c", "ftp://a", "http://a:99999", "")


def test_plain_http_is_for_this_host_or_takes_a_flag(project: Path) -> None:
    for address in OTHER_HOSTS:
        assert "--plain_http if that network is yours" in refused(project, address)
        _check_address(address, plain_http=True)
        _check_address(address.replace("http", "https"), plain_http=False)
    for address in THIS_HOST:
        _check_address(address, plain_http=False)
    for address in NO_ADDRESSES:
        with pytest.raises(UserError, match="--label_studio: give the server's address"):
            _check_address(address, plain_http=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"url": 5, "project": 1}', "[" * 100_000, "\xff"])
def test_a_damaged_server_json_is_one_line(project: Path, text: str) -> None:
    path = project / "rounds" / "000" / "label_studio" / "server.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"server\.json is damaged"):
        fetch(project, "http://127.0.0.1:9", ImportSettings())
