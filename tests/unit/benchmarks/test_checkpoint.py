"""`benchmarks/checkpoint.py` in small: everything is measured, and a save that does not hold the state is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import checkpoint


def test_every_contender_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "WORK", tmp_path)
    checkpoint.main(["--quick", "--json", str(tmp_path / "checkpoint.json")])
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    names = ["save_stall", "save_total", "load", "bytes_a_parameter", "stall_to_plain_copy"]
    assert [result["name"] for result in record["results"]] == names
    peers = {"torch.save", "torch.distributed.checkpoint.async_save"}
    assert all(set(result["peers"]) == peers for result in record["results"][:-1])
    assert 12 < record["results"][3]["ours"] < 16, "fp32 weight and two moments, and the header of a tiny model"
    assert record["results"][-1]["goal"] == {"ours": 2.0}
    assert [row[0] for row in record["tables"]["saves"]["rows"]] == [*checkpoint.CONTENDERS, checkpoint.COPY]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "gigabytes are not left behind"


@pytest.fixture
def state() -> checkpoint.State:
    model = checkpoint.model_with_gradients(checkpoint.SMALL, torch.device("cpu"))
    optimizer = checkpoint.make_optimizer(model, checkpoint.CONFIGS["adamw"])
    optimizer.step()
    return checkpoint.State(model, optimizer)


class Late(checkpoint.TorchSave):
    """Writes the state as it is when the save is finished."""

    def begin(self, state: checkpoint.State) -> checkpoint.Save:
        return checkpoint.Save(0.0, lambda: super(Late, self).begin(state) and None)


def test_a_save_of_a_later_state_is_found(state: checkpoint.State, tmp_path: Path) -> None:
    checkpoint.save_and_load(Late(tmp_path / "late"), state)
    with pytest.raises(AssertionError, match=r"Late: .* tensors have changed on the way"):
        checkpoint.save_and_load(Late(tmp_path / "late"), state, changes=True)
