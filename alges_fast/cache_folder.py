"""Where what can be made again is kept between runs: decoded frames, and features of frozen encoders."""

from __future__ import annotations

import os
from pathlib import Path

from alges_fast.errors import UserError


def default_cache_dir() -> Path:
    """$ALGES_FAST_CACHE, else ~/.cache/alges_fast. Raises UserError where there is no home folder."""
    if given := os.environ.get("ALGES_FAST_CACHE"):
        return Path(given)
    try:
        return Path.home() / ".cache" / "alges_fast"
    except RuntimeError:
        raise UserError("no home folder to keep a cache in: set ALGES_FAST_CACHE to a folder") from None
