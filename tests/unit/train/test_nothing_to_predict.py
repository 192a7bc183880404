"""A step whose global batch predicts nothing has no loss, and its gradient is zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.train import validation
from pipeline.train.run import train
from tests.runs import column, load, tiny_corpus, write_config


@pytest.mark.parametrize("predicts", [False, True])
def test_a_step_without_predictions_has_no_loss(
    predicts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "held_out_metrics", lambda *_: {})  # it would refuse rows without predictions
    tiny_corpus(tmp_path / "corpus")
    mask_rate = "0.15" if predicts else "0.005"  # of at most 62 tokens a row: 0.31, which is rounded to nothing
    overrides = ("--train.steps", "4", "--objective.mask_rate", mask_rate)
    train(load(write_config(tmp_path, tmp_path / "corpus"), *overrides))
    losses, norms = column(tmp_path / "run", "loss"), column(tmp_path / "run", "grad_norm")
    if predicts:
        assert all(loss > 0 for loss in losses)
        assert all(norm > 0 for norm in norms)
    else:
        assert losses == 4 * [None]
        assert norms == 4 * [0.0]
