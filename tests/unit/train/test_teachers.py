"""Teachers that cannot teach: each is one error that begins with the setting and the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.config.model import ModelConfig
from pipeline.models.build import build_model
from pipeline.train import teachers
from pipeline.train.setup import step_flops
from pipeline.train.streams import open_streams
from pipeline.train.teachers import checked_teacher
from tests.corpora import random_lengths, write_corpus
from tests.runs import load, write_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("teachers") / "corpus"
    lengths = random_lengths(0, 3, 40)
    return write_corpus(directory, lengths, validation=random_lengths(5, 2, 20), vocab_size=50).directory


def refused(corpus: Path, directory: Path, folder: Path, *overrides: str) -> str:
    """What the check of a teacher says."""
    objective = ("--objective.name", "distil", "--objective.teacher", str(folder))
    config = load(write_config(directory, corpus), *objective, *overrides)
    with pytest.raises(UserError) as raised:
        checked_teacher(config, open_streams(config), torch.device("cpu"))
    assert str(raised.value).startswith(f"objective.teacher: {folder}")
    return str(raised.value)


def test_a_folder_that_is_not_there(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    assert "config.json is missing" in refused(corpus, tmp_path, folder)
    config = load(write_config(tmp_path, corpus), "--objective.name", "distil", "--objective.teacher", str(folder))
    with pytest.raises(UserError, match=rf"objective\.teacher: {folder} has no config\.json"):
        step_flops(config)


@pytest.mark.parametrize("kind", ["deberta-v2", "bart", "openai-gpt"])
def test_a_type_that_cannot_teach(kind: str, corpus: Path, tmp_path: Path) -> None:
    import transformers

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    config = transformers.BertConfig(intermediate_size=16, **shape)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "teacher")
    file = tmp_path / "teacher" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": kind}))
    said = refused(corpus, tmp_path, tmp_path / "teacher")
    assert f"is a model of type '{kind}'; teachers can be bert, roberta" in said
    assert "bart," not in said


def save_teacher(folder: Path, family: Any, max_positions: int, special_ids: dict[str, int | None]) -> Path:
    shape = ModelConfig(
        family=family, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=32, max_positions=max_positions
    )
    build_model(shape, vocab_size=50, special_ids=special_ids, seed=3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_fewer_positions_than_the_longest_stage(
    family: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 16 tokens first, of 32 later: 31 positions are too few. RoBERTa's table has others beside them."""
    monkeypatch.setattr(teachers, "read_vocabulary", lambda _: None)  # the corpus has the shell of a tokenizer
    special_ids = open_streams(load(write_config(tmp_path, corpus))).manifest.special_ids
    stages = ("--train.stages", "[{steps: 1, sequence_length: 16}, {sequence_length: 32}]", "--train.steps", "5")
    narrow = ("--objective.cosine_weight", "0")
    folder = save_teacher(tmp_path / "teacher", family, 31, special_ids)
    said = refused(corpus, tmp_path, folder, "--data.sequence_length", "16", *stages, *narrow)
    assert said.endswith("has 31 positions; rows have up to 32 tokens (data.sequence_length).")
    save_teacher(folder, family, 32, special_ids)
    objective = ("--objective.name", "distil", "--objective.teacher", str(folder))
    config = load(write_config(tmp_path, corpus), *objective, *stages, *narrow)
    assert checked_teacher(config, open_streams(config), torch.device("cpu")) is not None


def test_weights_that_are_not_those_of_the_config(corpus: Path, tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher", "bert", 64, {"pad": 0})
    file = folder / "config.json"
    keys = json.loads(file.read_text())
    file.write_text(json.dumps({**keys, "hidden_size": 48}))
    assert "its weights are not those of its config.json" in refused(corpus, tmp_path, folder)
    file.write_text(json.dumps({**keys, "num_attention_heads": 5}))
    assert "transformers refuses its config.json" in refused(corpus, tmp_path, folder)
    file.write_text("[1]")
    assert "is damaged (config.json holds no mapping" in refused(corpus, tmp_path, folder)
