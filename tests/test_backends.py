"""The choice among backends, a table."""

from __future__ import annotations

import logging

import pytest

from alges_fast.backends import _say_once, check_backend, choose_backend, say_what_was_passed_over


@pytest.mark.parametrize(
    ("requested", "cannot", "chosen", "passed_over"),
    [
        (None, (), "first", ()),
        (None, ("first",), "second", ("first",)),
        (None, ("first", "second"), "last", ("first", "second")),
        ("second", (), "second", ()),
        ("second", ("first",), "second", ()),
        ("other", (), "other", ()),
    ],
)
def test_the_first_that_can_or_the_one_named(
    requested: str | None, cannot: tuple[str, ...], chosen: str, passed_over: tuple[str, ...]
) -> None:
    def reason(name: str) -> str | None:
        return f"{name} is broken" if name in cannot else None

    found = choose_backend(requested, ("first", "second", "last"), reason)
    assert found == (chosen, tuple((name, f"{name} is broken") for name in passed_over))


def test_a_named_backend_runs_or_raises() -> None:
    with pytest.raises(ValueError, match="backend='second' cannot run this call: second is broken"):
        choose_backend("second", ("first", "second"), lambda name: f"{name} is broken" if name == "second" else None)
    with pytest.raises(ValueError, match="backend: unknown name 'cudnn'; choose from first, second"):
        check_backend("cudnn", ("first", "second"))
    check_backend(None, ("first", "second"))


def test_a_fallback_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    _say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "alges_fast"):
        for _ in range(2):
            say_what_was_passed_over("an operation", "last", (("first", "it is broken"),))
            say_what_was_passed_over("an operation", "first", ())
    assert [record.getMessage() for record in caplog.records] == [
        "an operation: last runs instead of first: it is broken"
    ]
