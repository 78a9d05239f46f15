"""--help fits a screen, and then tells all."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

pytest.importorskip("yaml", reason="needs the extra `run`")

import alges_fast.data.__main__
import alges_fast.project.cli
import alges_fast.project.selecting
import alges_fast.run
from alges_fast.experiment.config import RunConfig
from alges_fast.project.cli import PROJECT
from alges_fast.project.selecting import SelectConfig
from alges_fast.settings import Command, as_settings, read

MAINS: dict[str, Callable[[list[str]], int]] = {
    "run": alges_fast.run.main,
    "select": alges_fast.project.selecting.main,
    "project": alges_fast.project.cli.main,
    "data": alges_fast.data.__main__.main,
}


def said(command: str, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert MAINS[command]([*words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", MAINS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_fits_a_screen_and_has_an_example(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(command, flag, capsys=capsys)
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 79
    assert "usage: python -m alges_fast." in text
    assert "docs/" in text


@pytest.mark.parametrize(("command", "config"), [("run", RunConfig), ("select", SelectConfig)])
def test_help_all_teaches_every_setting_and_help_names_none_that_is_not_there(
    command: str, config: type, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = said(command, "--help", "all", capsys=capsys)
    names = {*as_settings(config(images="x") if config is SelectConfig else config())}
    assert names <= set(re.findall(r"--(\w+)", everything))
    screen = said(command, "--help", capsys=capsys)
    assert set(re.findall(r"--([a-z]\w*)", screen)) - {"help"} <= names


@pytest.mark.parametrize("step", PROJECT.steps, ids=lambda step: step.name)
def test_a_steps_help_has_an_example_that_is_accepted(step: Command, capsys: pytest.CaptureFixture[str]) -> None:
    text = said("project", step.name, "--help", capsys=capsys)
    assert len(text.splitlines()) <= 40
    example = text.partition("example:")[2].split()
    assert isinstance(read(PROJECT, example[3 : 3 + len(step.example.split())]), step.config)
