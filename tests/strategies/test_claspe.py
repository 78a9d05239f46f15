"""ClaSP PE's schedule and shares."""

from __future__ import annotations

import pytest
import torch

from alges_fast.strategies.claspe import sharpness, stratified


def test_beta_goes_from_1_to_100_in_equal_factors() -> None:
    assert [sharpness(query, 5) for query in range(5)] == pytest.approx([1, 10**0.5, 10, 10**1.5, 100])
    assert sharpness(0, 1) == sharpness(0, 0) == 1
    assert sharpness(9, 5) == 100


def test_two_thirds_go_to_classes_in_turn_and_the_rest_to_the_best_of_all() -> None:
    by_class = torch.eye(4, 20)[:, torch.arange(20) % 4] + torch.arange(20, 0, -1) / 100  # class k likes k, k + 4, ...
    overall = torch.arange(20) / 1.0
    closed = torch.zeros(20, dtype=torch.bool)
    closed[[0, 19]] = True
    found = stratified(list(by_class), overall, 9, closed, 0)
    assert found == [4, 1, 18, 2, 3, 17, 8, 5, 16]
    closed[found[:4]] = True
    assert stratified(list(by_class), overall, 5, closed, 4) == found[4:]
