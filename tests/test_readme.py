"""What README and docs tell a newcomer to type is what CI types, and it runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
N_WORDS = 900


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `python -m alges_fast...` in a page, in a block or in the text, without what a shell adds."""
    text = text_of(page).replace("\\\n", " ")
    lines = [*re.findall(r"`(python -m alges_fast[^`]*)`", text), *map(str.strip, text.splitlines())]
    for line in lines:
        found = re.match(r"(?:.*; do \w+=\S+ )?(python -m alges_fast\.\w+ .*?)(?: & done.*| &| +#.*)?$", line)
        if found and "..." not in found[1]:
            yield shlex.split(found[1])[2:]


COMMANDS = [(page.name, words) for page in PAGES for words in commands(page)]
SNIPPETS = [(page, code) for page in PAGES for code in blocks(page, "python")]


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
    install = next(line for line in lines if line.startswith("pip install"))
    test = next(line for line in lines if line.startswith("pytest"))
    assert install.removeprefix("pip install ") in ci
    assert test in ci.splitlines()


def test_pre_commit_runs_what_ci_runs() -> None:
    yaml = pytest.importorskip("yaml", reason="needs the extra `run`")
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    entries = [hook["entry"] for hook in repository["hooks"]]
    assert entries == ci[ci.index("ruff check .") :]


def test_the_readme_is_short_and_has_a_picture() -> None:
    assert len(text_of(README).split()) <= N_WORDS
    assert re.search(r"!\[.{20,}\]\(docs/images/.*\)", text_of(README))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_inside_the_clone(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(page)):
        if not link.startswith("https://"):
            target = (page.parent / link).resolve()
            assert target.is_relative_to(ROOT), link
            assert target.exists(), link
    assert "../shared" not in text_of(page)


def test_every_page_is_led_to_from_the_readme() -> None:
    found, new = set[Path](), {README}
    while new:
        found |= new
        links = {
            (page.parent / link).resolve() for page in new for link in re.findall(r"\]\(([^)#]+\.md)", text_of(page))
        }
        new = (links & set(PAGES)) - found
    assert found == set(PAGES)


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[f"{page.name}-{i}" for i, (page, _) in enumerate(SNIPPETS)])
def test_python_in_the_pages_runs(page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("datasets", "fiftyone", "torchvision"):
        if re.search(rf"^(import|from) {library}\b", code, re.MULTILINE):
            pytest.importorskip(library, reason=f"{library} is not installed")
    if "import fiftyone" in code:
        import fiftyone  # type: ignore[import-not-found]

        try:
            fiftyone.list_datasets()
        except fiftyone.core.config.FiftyOneConfigError as error:
            pytest.skip(f"FiftyOne has no database: {error}")
    if re.search(r"^import timm\b", code, re.MULTILINE):
        timm = pytest.importorskip("timm", reason="timm is not installed")
        create = timm.create_model  # of the model that the page names there are no weights without a network
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create("test_vit", **options))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})


def test_there_are_commands_to_look_at() -> None:
    pytest.importorskip("yaml", reason="needs the extra `run`")
    assert len(COMMANDS) >= 25
    assert {words[0] for _, words in COMMANDS} >= {
        f"alges_fast.{name}" for name in ("run", "select", "data", "project")
    }


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(COMMANDS)])
def test_commands_in_the_pages_are_accepted(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("yaml", reason="needs the extra `run`")
    monkeypatch.chdir(ROOT)  # where examples/strategy.py is
    parsers()[words[0]](words[1:])


def parsers() -> dict[str, Callable[[list[str]], Any]]:
    import alges_fast.data.__main__
    import alges_fast.project.cli
    import alges_fast.project.selecting
    import alges_fast.run
    from alges_fast.settings import read

    def report(words: list[str]) -> None:
        assert len(words) == 1

    return {
        "alges_fast.run": alges_fast.run.parse,
        "alges_fast.select": alges_fast.project.selecting.parse,
        "alges_fast.data": partial(read, alges_fast.data.__main__.DATA),
        "alges_fast.project": partial(read, alges_fast.project.cli.PROJECT),
        "alges_fast.report": report,
    }


@pytest.mark.slow
def test_the_three_ways_in_are_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README's own lines in its order, on smaller frames; a script is the annotator."""
    import zipfile

    import numpy as np
    from PIL import Image
    from test_help import MAINS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    for words in [words for name, words in COMMANDS if name == "README.md" and len(words) > 1]:
        if words[1] == "import":
            images = Path("study/rounds/000/images")
            with zipfile.ZipFile("EXPORT.zip", "w") as archive:
                for path in (path for path in images.rglob("*") if path.is_file()):
                    with Image.open(path) as picture:
                        mask = np.asarray(picture.convert("L")) // 86  # three classes by brightness
                    with archive.open(path.relative_to(images).with_suffix(".png").as_posix(), "w") as member:
                        Image.fromarray(mask).save(member, "png")
        words = ["120" if word == "240" else word for word in words]
        assert MAINS[words[0].removeprefix("alges_fast.")](words[1:]) == 0, words
        if words[1] == "write-synthetic":
            frames = sorted(str(path) for path in Path("surgery").resolve().rglob("*_endo.png"))
            Path("frames.txt").write_text("\n".join(frames) + "\n")
    assert Path("runs/next/rounds/000/index.html").is_file()
    assert Path("study/rounds/001/index.html").is_file()
