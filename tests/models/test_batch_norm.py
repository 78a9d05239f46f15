"""What batch normalisation cannot learn from is told before a step is taken."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alges_fast.models.batch_norm import has_statistics_of_one_value


@pytest.mark.parametrize(("side", "batch"), [(8, 1), (16, 1), (8, 2)])
def test_it_says_what_torch_would_say_in_train_mode(side: int, batch: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    images = torch.rand(batch, 3, side, side)
    found = has_statistics_of_one_value(model, images)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert found == (side == 8 and batch == 1)
    if found:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(images)
    else:
        model(images)
