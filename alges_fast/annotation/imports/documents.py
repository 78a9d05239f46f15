"""XML and JSON from strangers, one frame at a time, so that memory is bounded by a frame and not by a file.

Parsed, either takes up to 22 times its size: `<a/>` becomes an element of 60 bytes and more, `[],` a list of 56.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from alges_fast.errors import UserError

MAX_DOCUMENT = 64 << 20
"""Bytes of a document: some thousand densely annotated frames."""
MAX_FRAME = 16 << 20
"""Bytes of what is said of one frame."""
MAX_NODES = 500_000
"""Elements, or lists and mappings, of one frame."""
MAX_ATTRIBUTES = 1000
_PIECE = 1 << 16
_DECODER = json.JSONDecoder()
_NO_SPACE = re.compile(rb"[^ \t\r\n]|\Z")


def xml_children(contents: bytes, where: str, whole: str, *, text_of: str) -> Iterator[Element]:
    """The root of an XML document, bare, and then its children: `whole` ones with all that is in them, others bare.

    Text is left out, but for that of elements `text_of`. A document with a type or entities is refused: these may name
    files, or grow without end.

    Raises:
        UserError: it is not such a document, or too large.
    """
    if any(tag.group().count(b"=") > MAX_ATTRIBUTES for tag in re.finditer(rb"<[^<]*", contents)):
        raise UserError(f"{where}: an element of more than {MAX_ATTRIBUTES} attributes: export it anew")
    if contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # it would hide from the check above
        raise UserError(f"{where}: no XML of UTF-8, which CVAT writes: export it anew")
    parser = expat.ParserCreate("utf-8")
    ready: list[Element] = []
    builder: TreeBuilder | None = None
    depth = n_nodes = began = 0
    keeps_text = False

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal builder, depth, n_nodes, began, keeps_text
        depth += 1
        if depth == 2 and name == whole:
            builder, n_nodes, began = TreeBuilder(), 0, parser.CurrentByteIndex
        elif depth <= 2:
            ready.append(Element(name, attributes))
        if builder is not None:
            n_nodes += 1
            if n_nodes > MAX_NODES or parser.CurrentByteIndex - began > MAX_FRAME:
                raise UserError(f"{where}: more than {MAX_NODES} shapes, or {MAX_FRAME >> 20} MB, of one {whole}")
            builder.start(name, attributes)
            keeps_text = name == text_of

    def text(data: str) -> None:
        if builder is not None and keeps_text:
            if parser.CurrentByteIndex - began > MAX_FRAME:
                raise UserError(f"{where}: more than {MAX_FRAME >> 20} MB of one {whole}")
            builder.data(data)

    def end(name: str) -> None:
        nonlocal builder, depth, keeps_text
        keeps_text = False
        if builder is not None:
            builder.end(name)
            if depth == 2:
                ready.append(builder.close())
                builder = None
        depth -= 1

    def refuse(*_: Any) -> None:
        raise UserError(f"{where}: declares a document type or entities, which no annotation tool writes: export anew")

    parser.StartElementHandler, parser.CharacterDataHandler, parser.EndElementHandler = start, text, end
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        for at in range(0, len(contents) + 1, _PIECE):
            parser.Parse(contents[at : at + _PIECE], at + _PIECE > len(contents))
            yield from ready
            ready.clear()
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise UserError(f"{where}: no XML, or cut short ({error}): export it anew") from None


def json_mappings(contents: bytes, where: str) -> Iterator[dict[str, Any]]:
    """The elements of a JSON list of mappings.

    Raises:
        UserError: it is not such a list, or too large.
    """
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
