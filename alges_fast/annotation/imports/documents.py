"""XML and JSON from strangers, one frame at a time, so that memory is bounded by a frame and not by a file.

Parsed, either takes up to 22 times its size: `<a/>` becomes an element of 60 bytes and more, `[],` a list of 56.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element, ParseError, XMLParser, iterparse

from alges_fast.errors import UserError

MAX_DOCUMENT = 64 << 20
"""Bytes of a document: some thousand densely annotated frames."""
MAX_FRAME = 16 << 20
"""Bytes of what JSON says of one frame."""
MAX_NODES = 500_000
"""Elements, or lists and mappings, of one frame."""
MAX_ATTRIBUTES = 1000
_PIECE = 1 << 16
_DECODER = json.JSONDecoder()
_NO_SPACE = re.compile(rb"[^ \t\r\n]|\Z")


def xml_children(contents: bytes, where: str) -> Iterator[Element]:
    """The root of an XML document, bare, and then its children; one is forgotten when the next is asked for.

    A document with a type or entities is refused: these may name files, or grow without end.

    Raises:
        UserError: it is not such a document, or too large.
    """
    if any(tag.group().count(b"=") > MAX_ATTRIBUTES for tag in re.finditer(rb"<[^<]*", contents)):
        raise UserError(f"{where}: an element of more than {MAX_ATTRIBUTES} attributes: export it anew")
    if contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # it would hide from these checks
        raise UserError(f"{where}: no XML of UTF-8, which CVAT writes: export it anew")
    if b"<!DOCTYPE" in contents or b"<!ENTITY" in contents:
        raise UserError(f"{where}: declares a document type or entities, which no annotation tool writes: export anew")
    depth = n_nodes = 0
    try:
        for event, element in iterparse(io.BytesIO(contents), ("start", "end"), XMLParser(encoding="utf-8")):
            depth += 1 if event == "start" else -1
            n_nodes += event == "start"
            if n_nodes > MAX_NODES:
                raise UserError(f"{where}: more than {MAX_NODES} shapes of one frame: export less at once")
            if event == "start" and depth == 1:
                root = element
                yield root
            elif event == "end" and depth == 1:
                yield element
                root.clear()
                n_nodes = 0
    except (ParseError, ValueError, LookupError) as error:
        raise UserError(f"{where}: no XML, or cut short ({error}): export it anew") from None


def json_mappings(contents: bytes, where: str) -> Iterator[dict[str, Any]]:
    """The elements of a JSON list of mappings. Raises UserError: it is not such a list, or too large."""
    at = _next(contents, len(codecs.BOM_UTF8) if contents.startswith(codecs.BOM_UTF8) else 0)
    at, closed = _after(contents, at, b"[", where), False
    if contents[at : at + 1] == b"]":
        at, closed = _next(contents, at + 1), True
    while not closed:
        if contents[at : at + 1] != b"{":
            raise _no_json(where, f"no mapping at byte {at}")
        value, at = _decoded(contents, at, where)
        yield value
        at = _next(contents, at)
        closed = contents[at : at + 1] == b"]"
        at = _after(contents, at, b"]" if closed else b",", where)
    if at != len(contents):
        raise _no_json(where, f"more after its end, at byte {at}")


def _decoded(contents: bytes, at: int, where: str) -> tuple[dict[str, Any], int]:
    """A mapping that begins at a byte, and where it ends; read in a window that grows until it holds it."""
    size = _PIECE
    while True:
        last = at + size >= len(contents)
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(contents[at : at + size], last)
            if text.count("[") + text.count("{") > MAX_NODES:
                raise UserError(f"{where}: more than {MAX_NODES} lists and mappings of one frame: export less at once")
            value, end = _DECODER.raw_decode(text)
            return value, at + (end if text.isascii() else len(text[:end].encode()))
        except (ValueError, RecursionError) as error:
            if last or isinstance(error, RecursionError):
                raise _no_json(where, str(error)) from None
            if size >= MAX_FRAME:
                raise UserError(f"{where}: more than {MAX_FRAME >> 20} MB of one frame, or no JSON ({error})") from None
        size *= 4


def _after(contents: bytes, at: int, sign: bytes, where: str) -> int:
    if contents[at : at + 1] != sign:
        raise _no_json(where, f"no {sign.decode()} at byte {at}")
    return _next(contents, at + 1)


def _next(contents: bytes, at: int) -> int:
    """Where something other than white space begins, or the end."""
    match = _NO_SPACE.search(contents, at)
    return len(contents) if match is None else match.start()


def _no_json(where: str, why: str) -> UserError:
    return UserError(f"{where}: no JSON list of tasks, or cut short ({why}): export from Label Studio as JSON")
