"""What a run is told of its model: packed or padded and why, by `config check`, and rows that do not suit it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def write_keys(directory: Path, keys: dict[str, Any], objective: str, sequence_length: int) -> Path:
    """A run with one text a row of a model with these keys."""
    path = write_run(directory, "llama", "one_document", sequence_length)
    (directory / "config.json").write_text(json.dumps(keys))
    path.write_text(path.read_text().replace("name: clm", f"name: {objective}") + "seed: 1\n")
    return path


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("keys", "objective", "fits", "message"),
    [
        # Tables of 514 and 66 rows: MPNet reads from row 2 whatever the padding token, and so does OPT.
        ({**SMALL, "model_type": "mpnet"}, "mlm", 510, "511 is longer than the 510 positions .*_embeddings to 513 in"),
        (
            {**SMALL, "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
            "clm", 64, None,
        ),
        ({**SMALL, "model_type": "bert"}, "mlm", 512, "513 is longer than the 512 positions .*_embeddings to 513 in"),
        (
            {**SMALL, "model_type": "llama"}, "clm", 2048,
            "2049 is longer than the 2048 positions that LlamaForCausalLM has where the config names none",
        ),
        ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}, "clm", 4096, None),
    ],
)  # fmt: skip
def test_the_longest_row_has_positions(
    keys: dict[str, Any], objective: str, fits: int, message: str | None, tmp_path: Path
) -> None:
    check_form(load_run_config(write_keys(tmp_path, keys, objective, fits)), {})
    if message is not None:
        with pytest.raises(UserError, match=message):
            check_form(load_run_config(write_keys(tmp_path, keys, objective, fits + 1)), {})


def test_a_config_of_more_than_text_is_one_error_of_check_and_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_keys(tmp_path, {"model_type": "gemma3", "text_config": {"hidden_size": 32}}, "clm", 48))
    for command in (["config", "check", path], ["config", "show", path]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("reads more than text") == 1
        assert "Traceback" not in said


def test_the_parameters_of_a_model_without_heads_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_keys(tmp_path, {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}, "clm", 48)
    assert main(["config", "check", str(path)]) == 0
    assert main(["config", "show", str(path), "--model.vocab_size", "64"]) == 0
    assert "# parameters" in capsys.readouterr().out
    assert reasons_for_slow_attention(load_run_config(path)) == []
