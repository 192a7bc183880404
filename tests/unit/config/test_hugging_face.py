"""Family `auto`: its `config.json` is read into the config, and what contradicts it is refused; models that run padded
take one text a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.checks import run_problems
from pipeline.config.loading import ConfigError, load_run_config, to_yaml
from pipeline.config.run import DataConfig, RunConfig, RunObjectiveConfig
from tests.unit.config.test_checks import with_values

KEYS = {"model_type": "llama", "hidden_size": 32, "max_position_embeddings": 512}
GOOD = with_values(
    RunConfig(run_directory="r", data=DataConfig(corpus="c"), objective=RunObjectiveConfig(name="clm")),
    model__family="auto",
    model__config=KEYS,
)
GPT = with_values(
    RunConfig(run_directory="r", data=DataConfig(corpus="c"), objective=RunObjectiveConfig(name="clm")),
    model__family="openai-gpt",
    data__packing="one_document",
)


def write_run(directory: Path, config: str) -> Path:
    path = directory / "run.yaml"
    path.write_text(
        f"run_directory: {directory / 'run'}\ndata: {{corpus: c, sequence_length: 64}}\nobjective: {{name: clm}}\n"
        f"model: {{family: auto, config: {config}}}\n"
    )
    return path


@pytest.mark.parametrize("name", ["config.json", "."])
def test_a_file_or_its_folder_is_read_into_the_config(name: str, tmp_path: Path) -> None:
    """The resolved config holds the keys, and loads again without the file."""
    (tmp_path / "config.json").write_text(json.dumps({**KEYS, "architectures": ["X"], "transformers_version": "4.0"}))
    config = load_run_config(write_run(tmp_path, str(tmp_path / name)))
    assert config.model.config == KEYS
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    (tmp_path / "config.json").unlink()
    assert load_run_config(resolved) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"model\.config: .*config\.json cannot be read \(No such file.*\); name a `config\.json` or its folder"),
        ("{", r"model\.config: .*config\.json is not JSON"),
        ("[1]", r"model\.config: .*config\.json holds no mapping of keys to values"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_run_config(write_run(tmp_path, str(tmp_path / "config.json")))
    assert len(error.value.problems) == 1


def test_good_ones_have_no_problem() -> None:
    assert run_problems(GOOD) == []
    assert run_problems(GPT) == []
    assert run_problems(with_values(GPT, data__packing="concatenate", data__cross_document_attention=True)) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model__config": None}, "model.config: required by family `auto`"),
        ({"model__config": {"hidden_size": 3}}, "model.config: names no `model_type`"),
        ({"model__config": {**KEYS, "quantization_config": {}}}, "quantised weights cannot be trained here"),
        ({"model__family": "gpt2"}, "model.family: `gpt2` is described by its own fields; set `auto`"),
        ({"model__hidden_size": 1536}, "model.hidden_size: 1536: model.config names the shape"),
        ({"model__num_heads": 7}, "model.num_heads: 7: model.config names the shape"),
        ({"model__hidden_dropout": 0.2}, "model.hidden_dropout: 0.2: model.config names the shape"),
        ({"model__extra": {"a": 1}}, "model.extra: {'a': 1}: model.config names the shape"),
        ({"model__mup_base_width": 256}, "model.mup_base_width: 256: model.config names the shape"),
        ({"objective__name": "rtd"}, "`rtd` does not train family `auto`; use `mlm` or `clm` or `denoise`"),
        ({"data__sequence_length": 1024}, "data.sequence_length: 1024 is longer than the model's positions"),
        ({"start__from_run": "x", "start__stack": 2}, "start.stack: needs a family whose blocks and positions"),
    ],
)
def test_each_problem_of_family_auto_is_named(values: dict[str, Any], message: str) -> None:
    (problem,) = run_problems(with_values(GOOD, **values))
    assert message in problem


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data__packing": "best_fit"}, "set `one_document`, or data.cross_document_attention: true."),
        ({"model__intermediate_size": 100}, "model.intermediate_size: 100: `openai-gpt` has 4 x model.hidden_size"),
        ({"objective__name": "distil", "objective__teacher": "t"}, "`distil` does not train family `openai-gpt`"),
        ({"model__mup_base_width": 256}, "muP is not worked out for `openai-gpt`"),
    ],
)
def test_each_problem_of_a_padded_family_is_named(values: dict[str, Any], message: str) -> None:
    (problem,) = run_problems(with_values(GPT, **values))
    assert message in problem
