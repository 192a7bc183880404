"""Snapshots of a device's memory: pinned memory gets them, bit by bit."""

from __future__ import annotations

import pytest
import torch

from pipeline.checkpoints.snapshot import Snapshot
from tests.unit.checkpoints.test_snapshot import content, whole

pytestmark = pytest.mark.gpu


def test_what_the_device_had_is_in_pinned_memory() -> None:
    snapshot = Snapshot()
    for size in (1001, 500_000, 77):  # the memory grows once
        state = {"weight/a": torch.randn(size, device="cuda"), "exp_avg/a": torch.randn(size, device="cuda").bfloat16()}
        expected = {key: values.cpu() for key, values in state.items()}
        snapshot.take([whole(key, values) for key, values in state.items()])
        for values in state.values():
            values.zero_()
        found = content(snapshot)
        assert all(torch.equal(found[key], values) for key, values in expected.items())
        assert snapshot._bytes.is_pinned()
    snapshot.close()
