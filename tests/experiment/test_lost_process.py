"""Which errors say that another process of a job has gone, and which are this one's own."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from alges_fast.experiment import LostProcess
from alges_fast.job import naming_lost_processes

GONE = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:9362. This is typically caused by ...")


def test_the_store_and_the_back_ends_say_that_a_process_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    remote = dist.DistBackendError("NCCL error: remote process exited or there was a network error")
    for error in (GONE, remote, dist.DistNetworkError("failed to recv"), dist.DistStoreError("wait timeout")):
        with pytest.raises(LostProcess), naming_lost_processes():
            raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), dist.DistBackendError("NCCL error: invalid usage")])
def test_a_fault_of_its_own_keeps_its_name(error: RuntimeError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(type(error)) as raised, naming_lost_processes():
        raise error
    assert raised.value is error


def test_one_process_alone_loses_none() -> None:
    with pytest.raises(RuntimeError) as raised, naming_lost_processes():
        raise GONE
    assert raised.value is GONE
