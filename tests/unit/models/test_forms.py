"""What a run is told of its model: packed or padded and why, by `config check`, and rows that do not suit it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.cli import main
from pipeline.config.loading import load_run_config
from pipeline.config.run import RunConfig
from pipeline.models.forms import check_form, form_of, is_padded, reasons_for_slow_attention
from tests.unit.models.auto_cases import CASES, NO_INTERFACE

OBJECTIVES = {"masked": "mlm", "causal": "clm", "seq2seq": "denoise"}


def write_run(directory: Path, name: str, packing: str, sequence_length: int = 48) -> Path:
    case = CASES[name]
    (directory / "config.json").write_text(json.dumps(case.keys))
    path = directory / "run.yaml"
    path.write_text(
        f"run_directory: r\ndata: {{corpus: c, sequence_length: {sequence_length}, packing: {packing}}}\n"
        f"model: {{family: auto, config: {directory / 'config.json'}}}\nobjective: {{name: {OBJECTIVES[case.head]}}}\n"
    )
    return path


def load(directory: Path, name: str, packing: str = "best_fit", sequence_length: int = 48) -> RunConfig:
    return load_run_config(write_run(directory, name, packing, sequence_length))


@pytest.mark.parametrize(
    ("name", "packing", "said"),
    [
        ("llama", "best_fit", "LlamaForCausalLM, packed: every text of a row comes out as it does alone"),
        ("mpnet", "one_document", f"MPNetForMaskedLM, padded: {NO_INTERFACE}"),
    ],
)
def test_config_check_says_which_and_why(
    name: str, packing: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_run(tmp_path, name, packing)
    assert main(["config", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok\n  model: {said}\n"


@pytest.mark.parametrize(
    ("name", "way_out"), [("mpnet", r"cross_document_attention: true"), ("t5", r"`one_document`\.")]
)
def test_several_texts_in_a_row_are_refused_where_the_model_runs_padded(
    name: str, way_out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(tmp_path, name)
    with pytest.raises(UserError, match=rf"data\.packing: `best_fit` puts several texts into a row.*{way_out}"):
        check_form(config, {})
    assert main(["config", "check", str(tmp_path / "run.yaml")]) == 2
    assert "this model runs padded, with one text a row" in capsys.readouterr().err
    assert is_padded(config)


def test_positions_after_the_padding_token_are_fewer(tmp_path: Path) -> None:
    """Of 64 positions, with padding id 1, are left 62."""
    check_form(load(tmp_path, "xlm-roberta", sequence_length=62), {"pad": 1})
    with pytest.raises(UserError, match=r"64 is longer than the 62 positions .* max_position_embeddings to 66"):
        check_form(load(tmp_path, "xlm-roberta", sequence_length=64), {"pad": 1})


def test_slow_attention_on_a_gpu_is_known(tmp_path: Path) -> None:
    assert reasons_for_slow_attention(load(tmp_path, "llama")) == []
    config = load(tmp_path, "llama")
    assert config.model.config is not None
    config.model.config["attention_dropout"] = 0.1
    (reason,) = reasons_for_slow_attention(config)
    assert "0.1: flash attention for packed rows has no dropout" in reason
    assert reasons_for_slow_attention(load(tmp_path, "mpnet", "one_document")) == []


def test_the_first_gpt_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[3] / "configs" / "gpt1.yaml"
    assert main(["config", "check", str(path)]) == 0
    assert f"model: OpenAIGPTLMHeadModel, padded: {NO_INTERFACE}" in capsys.readouterr().out
    assert is_padded(load_run_config(path))
    assert str(form_of(load_run_config(path))).startswith("OpenAIGPTLMHeadModel")
    assert form_of(load_run_config(path.with_name("bert_base.yaml"))) is None
