"""The pages that people read: each one self-contained file, over the head and the style that all share."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import Any

import jinja2
from PIL import Image


def render(package: str, name: str, *, title: str, kicker: str, **values: Any) -> str:
    """A page as HTML.

    Args:
        package: whose folder has the template `name`.html, which extends base.html, and `name`.css where base.css is
            not all of its style.
        kicker: what stands above its title, after the product's name.
        values: what the template names.
    """
    base, own = resources.files("alges_fast.pages"), resources.files(package)
    css = [base / "base.css", own / f"{name}.css"]
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda _: (base / "base.html").read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string((own / f"{name}.html").read_text(encoding="utf-8")).render(
        title=title,
        kicker=kicker,
        style="".join(file.read_text(encoding="utf-8") for file in css if file.is_file()),
        **values,
    )


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file of this kind ("png", "jpeg"), with Pillow's options for it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_address(picture: Image.Image, **options: Any) -> str:
    """A picture as an address that holds it, WebP with Pillow's options."""
    return f"data:image/webp;base64,{base64.b64encode(encoded(picture, 'webp', **options)).decode()}"
