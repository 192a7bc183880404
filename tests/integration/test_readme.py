"""The README's commands run, on a text and a model small enough for a test."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from pipeline.cli import main

REPOSITORY = Path(__file__).parents[2]
TINY = """
  --data.sequence_length 32 --model.hidden_size 32 --model.num_layers 1 --model.num_heads 2 --model.intermediate_size 32
  --model.vocab_size 30522 --train.steps 2 --train.global_batch_size 4 --train.compile false --train.device cpu
  --train.precision fp32 --train.threads_per_rank 1 --schedule.warmup_steps 0 --evaluation.rows 2 --monitor.wandb off
"""
EXTRA = {
    "corpus build": "--tokenizer.vocab_size 300 --processes 1 --shards.validation_share 0.3",
    "config show": TINY,
    "bench": TINY + " --steps 2 --warmup 0",
    "train": TINY,
    "launch torchrun": TINY + " --processes 1",
    "launch slurm": "",
    "batch": TINY.replace("--train.steps 2", "--train.steps 1000"),
}


def commands() -> list[list[str]]:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    pretrain (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_commands_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    texts = tmp_path / "data/texts"
    texts.mkdir(parents=True)
    for number in range(12):
        sentence = " ".join(f"word{number * step % 17} and" for step in range(1, 60))
        (texts / f"{number}.txt").write_text(f"Text {number}. {sentence} the end.")
    monkeypatch.chdir(tmp_path)
    ran = []
    for words in commands():
        name = next((name for name in EXTRA if " ".join(words).startswith(name)), words[0])
        assert main([*words, *shlex.split(EXTRA.get(name, ""))]) == 0, words
        ran.append(name)
    trained = ["corpus build", "config show", "bench", "train", "launch torchrun"]
    assert ran == [*trained, "launch slurm", "batch", "status", "report", "export"]
    assert (tmp_path / "runs/bert_base/report.html").exists()
    assert (tmp_path / "my-bert/model.safetensors").exists()


def test_the_tree_of_the_readme_is_the_tree() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"docs/\w+\.md", text):
        assert (REPOSITORY / name).exists(), name
    packages = {path.parent.name for path in (REPOSITORY / "pipeline").glob("*/__init__.py")}
    assert packages <= set(re.findall(r"^      (\w+)/", text, re.MULTILINE))
    assert len(text.splitlines()) < 80
