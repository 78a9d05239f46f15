"""What strangers wrote is shown without harm: in a terminal, and in a spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alges_fast.annotation.exports import csv_rows, csv_text
from alges_fast.command import run_command
from alges_fast.errors import UserError


@given(st.text(st.sampled_from("'=+-@\t a1,\"\n.e"), max_size=6))
def test_no_cell_is_a_formula_and_every_cell_comes_back(text: str) -> None:
    written = csv_text([{"id": text, "score": "-0.5"}])
    assert list(csv_rows(written)) == [{"id": text, "score": "-0.5"}]
    (raw,) = csv.DictReader(io.StringIO(written, newline=""))
    if raw["id"][:1] in ("=", "@", "\t", "+", "-"):
        float(raw["id"])  # a number is shown as one


def test_errors_are_one_line_whatever_is_in_them() -> None:
    line = str(UserError("a\x1b[2J\nb\udcff \u202e" + "x" * 10_000))
    assert line.startswith("a\\x1b[2J\\nb\\udcff \\u202ex")
    assert line.isprintable()
    assert len(line) < 2100
    assert str(UserError("große Ader: é ü 肝臓")) == "große Ader: é ü 肝臓"


def test_out_of_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise MemoryError

    assert run_command(body, if_out_of_memory="take less") == 2
    assert capsys.readouterr().err == "error: out of memory: take less\n"
