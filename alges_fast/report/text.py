"""Numbers as the report writes them, in figures, tables and sentences alike."""

from __future__ import annotations


def dice(value: float) -> str:
    """ "0.448" """
    return f"{value:.3f}"


def signed(value: float) -> str:
    """ "+0.012" or "−0.012", with a minus sign instead of a hyphen."""
    return f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """ "0.042" or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
