"""Writes a report: table.md, figures/*.png and the self-contained report.html, from the files under OUT alone.

The page carries every chart four times, for light and dark and for wide and narrow screens, each drawn at its own size;
the browser shows the one that fits. Pictures of frames are carried once per theme, compressed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from alges_fast import atomic
from alges_fast.data.loading import map_in_order
from alges_fast.pages import data_address, encoded, render
from alges_fast.report.findings import find, sentences
from alges_fast.report.run_folder import RunFolder, read_run
from alges_fast.report.sections import Picture, Section, sections_of
from alges_fast.report.style import DARK, LIGHT, NARROW, Theme
from alges_fast.report.text import count

NARROW_SCREEN = 620  # CSS pixels
_SCREENS = {
    "wide": LIGHT,
    "wide_dark": DARK,
    "narrow": replace(LIGHT, width=NARROW, dpi=200),
    "narrow_dark": replace(DARK, width=NARROW, dpi=200),
}


def write_report(out: Path) -> None:
    """Write OUT/table.md, OUT/figures/*.png and OUT/report.html of a finished or unfinished run.

    What the run has not left in its folder is left out of the report, with a sentence in its place.

    Raises:
        UserError: OUT holds no results.csv with at least one row.
    """
    run = read_run(out)
    findings = find(run)
    said = sentences(run, findings)
    sections = sections_of(run, findings)
    pictures = [p for section in sections for part in (section, *section.folds) for p in part.pictures]

    def inline(drawn: tuple[Picture, str, Image.Image]) -> tuple[str, str, str]:
        picture, screen, image = drawn
        if screen == "wide":
            atomic.write_bytes(out / "figures" / f"{picture.name}.png", encoded(image, "png"))
        options = {"quality": 82} if picture.photograph else {"lossless": True, "method": 2}
        return picture.name, screen, data_address(image, **options)

    inlined: dict[str, dict[str, str]] = {}
    drawn = ((picture, screen, _draw(picture, theme)) for picture in pictures for screen, theme in _SCREENS.items())
    for name, screen, address in map_in_order(inline, drawn, ahead=1):  # matplotlib draws one at a time
        inlined.setdefault(name, {})[screen] = address
    atomic.write_bytes(out / "table.md", _markdown(run, said, sections).encode())
    atomic.write_bytes(out / "report.html", _page(run, said, sections, inlined).encode())


def _markdown(run: RunFolder, said: Sequence[str], sections: Sequence[Section]) -> str:
    parts = [f"# {run.title}\n", " ".join(said) + "\n"]
    for section in sections[:-1]:  # the settings are in files of their own
        for part in (section, *section.folds):
            if part.table:
                parts += [f"## {part.title}\n", *([f"{part.text}\n"] if part.text else []), part.table.markdown()]
    return "\n".join(parts)


def _page(
    run: RunFolder,
    said: Sequence[str],
    sections: Sequence[Section],
    inlined: Mapping[str, Mapping[str, str]],
) -> str:
    strategies = count(len(run.strategies), "strategy")
    trainings = count(len({row["n_labelled"] for row in run.curve_rows}), "training")
    return render(
        "alges_fast.report",
        "page",
        title=run.title,
        kicker=f"{strategies}, {count(len(run.seeds), 'seed')}, {trainings}",
        said=said,
        sections=sections,
        inlined=inlined,
        narrow_screen=NARROW_SCREEN,
    )


def _draw(picture: Picture, theme: Theme) -> Image.Image:
    if picture.photograph:  # frames have few pixels to show, and many weigh on the page
        theme = replace(theme, dpi=round(theme.dpi * 0.7))
    with matplotlib.rc_context(theme.settings()):
        canvas = FigureCanvasAgg(picture.draw(theme))
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
