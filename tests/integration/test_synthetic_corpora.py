"""From a synthetic corpus to an exported model: training, validation and export take it as they take text."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from pipeline.cli import main
from tests.runs import TINY_RUN, column

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--documents", "300", "--length", "32", "--vocab_size", "60", "--shards.validation_share", "0.2"]


def test_a_tiny_bert_trains_on_it_and_is_exported(tmp_path: Path) -> None:
    corpus, config = tmp_path / "corpus", tmp_path / "run.yaml"
    command = ["corpus", "synthesize", str(REPOSITORY / "configs/corpus/synthetic.yaml"), "--output", str(corpus)]
    assert main([*command, "--processes", "1", *SMALL, "--exponent", "2"]) == 0
    text = TINY_RUN.replace("data: {", f"data: {{corpus: {corpus}, ").replace("steps: 20", "steps: 10")
    config.write_text(f"run_directory: {tmp_path / 'run'}\n{text}")
    assert main(["train", str(config)]) == 0
    losses = [loss for loss in column(tmp_path / "run", "loss") if loss is not None]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] - 0.2  # the frequencies of words are learned in a few steps
    assert any("validation_loss" in name for name in re.findall(r"\w+", (tmp_path / "run/metrics.jsonl").read_text()))
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "hf")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "hf")
    inputs = tokenizer("w0 [MASK] w3", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[2, 5, 4, 8, 3]]
    assert model(**inputs).logits.shape == (1, 5, model.config.vocab_size)


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs/corpus.md").read_text(encoding="utf-8")
    section = page[page.index("## Synthetic corpora") :]
    commands = re.findall(r"^pretrain (.*)$", section, re.MULTILINE)
    assert len(commands) == 3
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    for command in commands:
        small = ["--documents", "100", "--processes", "1"] if "synthesize" in command else []
        assert main([*shlex.split(command, comments=True), *small]) == 0, command
