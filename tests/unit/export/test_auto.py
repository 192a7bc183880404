"""Exports of family `auto` and of models that run padded: the gate holds them against the stock class by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from pipeline.config.loading import to_yaml
from pipeline.config.model import ModelConfig
from pipeline.config.run import ObjectiveConfig, ObjectiveName, RunConfig
from pipeline.export.run import export_run
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from tests.unit.export.export_cases import make_corpus, run_config, save_step
from tests.unit.models.auto_cases import CASES

OBJECTIVES: dict[str, ObjectiveName] = {"masked": "mlm", "causal": "clm", "seq2seq": "denoise"}
GPT = ModelConfig(family="openai-gpt", hidden_size=32, num_layers=2, num_heads=2, intermediate_size=128)


def make_run(root: Path, style: str, model: ModelConfig, objective: ObjectiveName, packing: str) -> RunConfig:
    """A run of this model with one checkpoint, on a corpus with the tokenizer of ``style``."""
    manifest = make_corpus(root / "corpus", style)
    config = run_config(root / "run", root / "corpus", style)
    config = replace(
        config,
        model=model,
        objective=ObjectiveConfig(name=objective),
        data=replace(config.data, packing=packing),  # type: ignore[arg-type]
    )
    save_step(config, read_manifest(LocalFiles(root / "corpus")), 100)
    assert manifest.vocab_size
    (root / "run" / "config.yaml").write_text(to_yaml(config))
    return config


@pytest.mark.parametrize("name", ["llama", "cohere", "xlm-roberta", "deberta-v2", "openai-gpt", "t5"])
def test_a_config_s_model_passes_the_gate(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    style = "gpt2" if case.head == "causal" else "roberta"
    packing = "best_fit" if case.padded is None else "one_document"
    make_run(tmp_path, style, case.config, OBJECTIVES[case.head], packing)
    report = export_run(tmp_path / "run", tmp_path / "hf")
    assert report.class_name == case.class_name
    assert report.max_abs_logit_difference <= 1e-5
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == case.keys["model_type"]
    assert config["architectures"] == [case.class_name]
    assert "pretrain_" not in json.dumps(config)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert ("padded (`one_document`)" if case.padded else "packed (`best_fit`)") in card
    assert f"- {case.keys['model_type']}" in card
    assert "as in `config.json`" in card


def test_the_first_gpt_passes_the_gate_and_generates(tmp_path: Path) -> None:
    make_run(tmp_path, "gpt2", GPT, "clm", "one_document")
    assert export_run(tmp_path / "run", tmp_path / "hf").class_name == "OpenAIGPTLMHeadModel"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer("whale", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
    assert "A GPT model" in (tmp_path / "hf" / "README.md").read_text()
