"""The strategies that are recommended, and taken where none is named; docs/effort.md has the grounds."""

from __future__ import annotations

COLD_START = "typical"
"""Before there is a model."""
FRAMES, WINDOWS = "alges-img", "random"
"""With a model, for whole frames and for windows: no way of choosing windows was at no place worse than chance."""


def default_strategy(*, model: bool, windows: bool) -> str:
    """The recommended strategy where there is a trained model or none, for windows or whole frames."""
    if not model:
        return COLD_START
    return WINDOWS if windows else FRAMES
