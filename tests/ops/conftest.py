"""Backends as fixtures: a test that takes one runs on all of them."""

from __future__ import annotations

import pytest
from backends_here import Backend, running


@pytest.fixture(params=running())
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture(params=running("cuda"))
def on_gpu(request: pytest.FixtureRequest) -> Backend:
    return request.param
