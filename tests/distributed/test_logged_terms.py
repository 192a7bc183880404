"""What a real run says of a loss of two terms: in its metrics, and on its console."""

from __future__ import annotations

import contextlib
import io
import math
import re
from pathlib import Path

import pytest

from tests.rankpool import RankPool
from tests.runs import metrics_of, run_rank, tiny_corpus, write_config

STEPS = 6


def _console_of(config_path: str, overrides: list[str]) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as text:
        run_rank(config_path, overrides)
    return text.getvalue()


def test_both_terms_of_a_run_with_pairs_are_logged(rank_pool: RankPool, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_corpus(tmp_path / "corpus").directory)
    overrides = ["--objective.name", "mlm+nsp", "--data.packing", "pairs_nsp", "--train.strategy", "ddp"]
    overrides += ["--train.steps", str(STEPS), "--evaluation.every_steps", "3"]
    console, of_other_rank = rank_pool.run(_console_of, str(config), overrides, world_size=2)
    lines = metrics_of(config.with_suffix(""))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert {name for name in line if name.startswith("loss")} == {"loss", "loss_mlm", "loss_nsp"}
        assert line["loss"] == pytest.approx(line["loss_mlm"] + line["loss_nsp"], rel=1e-12)
        shown = "loss {loss:.3f} (mlm {loss_mlm:.3f} nsp {loss_nsp:.3f}) lr".format(**line)
        assert f"step {line['step']}/{STEPS} {shown}" in console
    assert lines[0]["loss_mlm"] == pytest.approx(math.log(200), rel=0.1)
    assert lines[0]["loss_nsp"] == pytest.approx(math.log(2), rel=0.1)
    validated = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in validated] == [3, 6]
    for line in validated:
        mlm, nsp = line["validation_loss_mlm"], line["validation_loss_nsp"]
        assert line["validation_loss"] == pytest.approx(mlm + nsp, rel=1e-12)
        assert line["validation_perplexity"] == pytest.approx(math.exp(mlm), rel=1e-12)
        assert f"validation loss {mlm + nsp:.3f} (mlm {mlm:.3f} nsp {nsp:.3f}) perplexity" in console
    assert not re.search("step [0-9]", of_other_rank)
