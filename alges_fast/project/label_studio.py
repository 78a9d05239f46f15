"""A round through a Label Studio server: its tasks go there, and what is finished comes back.

The server is a project's own business: nothing but the address is kept, in rounds/NNN/label_studio/server.json, and the
key is read from the environment and written nowhere. A server's project is found again by its description, so a step
that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import ipaddress
import mimetypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from alges_fast import atomic
from alges_fast.annotation.imports import read_tasks
from alges_fast.errors import UserError
from alges_fast.progress import Progress, silent
from alges_fast.project.folder import Import, ImportDraft, Project, Round
from alges_fast.project.importing import ImportSettings, fill, reading_for, take_in
from alges_fast.project.pool import list_pool
from alges_fast.project.reading import read_facts, read_json

KEY = "LABEL_STUDIO_API_KEY"
SERVER = "server.json"
TOGETHER = 20
"""Tasks of a request; those of one that was killed are sent again."""


def send_round(project: Project, url: str, progress: Progress = silent, *, plain_http: bool = False) -> str:
    """Make a project on the server with the tasks of the round that is out, or add those that are missing there.

    Args:
        plain_http: whether key and frames may go to another host unencrypted.

    Raises:
        UserError: no round is out, no key, or a server that does not answer or refuses.
    """
    if not project.rounds or project.rounds[-1].picks is None:
        raise UserError(f"no round is out: {project.command('next', '-n 20')} first")
    round = project.rounds[-1]
    folder = round.folder / "label_studio"
    tasks = read_json(folder / "tasks.json")
    with _connected(url, plain_http=plain_http) as client:
        number = _server_project(client, project, round, (folder / "config.xml").read_text(encoding="utf-8"))
        there = {task["data"].get("frame") for task in _tasks(client, number)}
        missing = [task for task in tasks if task["data"]["frame"] not in there]
        for start in range(0, len(missing), TOGETHER):
            batch = []
            for done, task in enumerate(missing[start : start + TOGETHER], start):
                progress("sending tasks", done, len(missing))
                name = task["data"]["frame"]
                address = _upload(client, number, name, (round.folder / "images" / name).read_bytes())
                batch.append({**task, "data": {**task["data"], "image": address}})
            client.projects.import_tasks(number, request=batch)
    atomic.write_json(folder / SERVER, {"url": url.rstrip("/"), "project": number})
    return f"{len(tasks)} tasks: {url.rstrip('/')}/projects/{number}"


def fetch_rounds(
    project: Project,
    url: str,
    settings: ImportSettings | None = None,
    progress: Progress = silent,
    *,
    plain_http: bool = False,
) -> list[Import]:
    """Take in what is finished of all rounds on the server; an import for each round with news.

    Raises:
        UserError: no round was sent there, no key, or a server that does not answer or refuses.
    """
    sent = [(round, facts) for round in project.rounds if (facts := _sent(round, url)) is not None]
    if not sent:
        raise UserError(
            f"no round was sent to {url}: {project.command('next', f'--label_studio {url}')} sends the one that is out"
        )
    pool = list_pool(project)
    settings = settings or ImportSettings()
    reading = reading_for(project, pool, settings)
    drafts: list[ImportDraft] = []
    sources = [[f"{url}, project {facts['project']}"] for _, facts in sent]
    with project.drafting() as folder:
        with _connected(url, plain_http=plain_http) as client:
            for done, (_, facts) in enumerate(sent):
                progress("fetching rounds", done, len(sent))
                draft = ImportDraft(folder / str(done))
                returned = read_tasks(_tasks(client, facts["project"]), sources[done][0], reading)
                fill(draft, project, pool, returned, settings.untouched, drafts)
                drafts.append(draft)
        return [taken for taken in take_in(project, drafts, sources) if taken is not None]


@contextmanager
def _connected(url: str, *, plain_http: bool) -> Iterator[Any]:
    """A client that follows no redirect, which would take key and frames to wherever a server says.

    What its library raises becomes one line, which says of what kind it is and no more: the text may hold the key, as
    it is or in any spelling.
    """
    _check_address(url, plain_http=plain_http)
    key = _key()
    try:
        import httpx
        from label_studio_sdk import LabelStudio
        from label_studio_sdk.core.api_error import ApiError
    except ImportError:
        raise UserError("--label_studio needs its SDK: pip install 'alges-fast[label-studio]'") from None
    try:
        yield LabelStudio(base_url=url.rstrip("/"), api_key=key, timeout=60, follow_redirects=False)
    except UserError:
        raise
    except ApiError as error:
        if error.status_code is not None and 300 <= error.status_code < 400:
            raise UserError(
                f"{url}: redirects, and nothing is sent on: give the address that it redirects to"
            ) from None
        if error.status_code == 200:
            raise UserError(f"{url}: answers what no Label Studio does: check the address") from None
        why = "refuses the key" if error.status_code in (401, 403) else f"answers {error.status_code}"
        raise UserError(f"{url}: {why}: check {KEY} and what the account may do there") from None
    except httpx.HTTPError as error:
        raise UserError(
            f"{url}: does not answer ({type(error).__name__}): check the address and that the server runs"
        ) from None
    except Exception as error:  # the SDK takes every page for the JSON that it expects
        raise UserError(
            f"{url}: answers what no Label Studio does ({type(error).__name__}): check the address"
        ) from None


def _check_address(url: str, *, plain_http: bool) -> None:
    try:
        address = urlsplit(url)
        host = address.hostname or ""
        _ = address.port
    except ValueError:
        address, host = urlsplit(""), ""
    if address.scheme not in ("http", "https") or not host or address.username or address.password:
        raise UserError("--label_studio: give the server's address, such as http://127.0.0.1:8080, without a password")
    try:
        here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    if address.scheme == "http" and not here and not plain_http:
        raise UserError(
            f"--label_studio {url}: key and frames would go to another host for all on the way to read: give an https "
            "address, or --plain_http if that network is yours"
        )


def _key() -> str:
    key = os.environ.get(KEY)
    if not key:
        raise UserError(
            f"{KEY} is not set: make a personal access token in Label Studio (Account & Settings) and put it into that "
            "environment variable"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"{KEY} holds white space or another character that no key has (a line end, of a file saved on Windows?): "
            "set it to the key alone"
        )
    return key


def _server_project(client: Any, project: Project, round: Round, config: str) -> int:
    """The number of this round's project on the server, which is made where it is not there."""
    mark = hashlib.blake2b(f"{project.root.resolve()} {round.number} {config}".encode(), digest_size=8).hexdigest()
    description = f"alges_fast {mark}"
    for known in client.projects.list():
        if known.description == description:
            return int(known.id)
    title = f"{project.root.resolve().name[:38]} {round.number:03d}"
    made = client.projects.create(title=title, label_config=config, description=description)
    return int(made.id)


def _tasks(client: Any, number: int) -> Iterator[dict[str, Any]]:
    """Tasks with their annotations, as a JSON export has them, page by page."""
    for task in client.tasks.list(project=number, fields="all"):
        yield {"data": task.data, "annotations": [_plain(annotation) for annotation in task.annotations or ()]}


def _plain(annotation: Any) -> dict[str, Any]:
    facts: Mapping[str, Any] = annotation if isinstance(annotation, Mapping) else annotation.dict()
    return {**facts, "updated_at": str(facts.get("updated_at", ""))}


def _upload(client: Any, number: int, name: str, contents: bytes) -> str:
    """Put a picture on the server; the address that it has there."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    # The SDK has no method of its own for this request, only the client that signs all of them.
    answer = client._client_wrapper.httpx_client.request(
        f"api/projects/{number}/import",
        method="POST",
        params={"commit_to_project": "false"},
        files={"file": (PurePosixPath(name).name, contents, kind)},
    )
    if answer.status_code != 201:
        raise UserError(f"the server does not take {name} ({answer.status_code}): check its limit for uploads")
    upload = client.files.get(id=answer.json()["file_upload_ids"][0])
    return f"/data/{upload.file}"


def _sent(round: Round, url: str) -> dict[str, Any] | None:
    path = round.folder / "label_studio" / SERVER
    if not path.exists():
        return None
    facts = read_facts(path, {"url": str, "project": int})
    return facts if facts["url"] == url.rstrip("/") else None
