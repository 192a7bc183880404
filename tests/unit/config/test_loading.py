"""YAML, base and overrides become a typed config; every problem is told in one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.corpus import CorpusConfig
from pipeline.config.loading import (
    ConfigError,
    load_any_config,
    load_corpus_config,
    load_run_config,
    parse_overrides,
    to_yaml,
)
from pipeline.config.run import RunConfig

MINIMAL = "run_directory: runs/x\ndata: {corpus: c}\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_any_config(path, overrides)
    return caught.value.problems


def test_values_come_from_the_file_and_defaults(tmp_path: Path) -> None:
    config = load_run_config(
        write(tmp_path / "a.yaml", MINIMAL + "optimizer: {learning_rate: 1e-3, betas: [0.9, 0.98]}")
    )
    assert isinstance(config, RunConfig)
    assert config.optimizer.learning_rate == 1e-3
    assert config.optimizer.betas == (0.9, 0.98)
    assert config.data.sequence_length == 512


def test_overrides_win_over_the_file_and_the_file_over_its_base(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", MINIMAL + "seed: 1\ntrain: {steps: 10, micro_batch_size: 4}\n")
    path = write(tmp_path / "a.yaml", "base: base.yaml\nseed: 2\ntrain: {steps: 20}\n")
    config = load_run_config(path, ["--train.steps", "30", "--data.workers=2", "--model.extra.hidden_act", "relu"])
    assert (config.seed, config.train.steps, config.train.micro_batch_size, config.data.workers) == (2, 30, 4, 2)
    assert config.model.extra == {"hidden_act": "relu"}


def test_a_resolved_config_loads_as_itself(tmp_path: Path) -> None:
    config = load_run_config(write(tmp_path / "a.yaml", MINIMAL + "model: {extra: {hidden_act: relu}}"))
    assert load_run_config(write(tmp_path / "b.yaml", to_yaml(config))) == config
    corpus = load_corpus_config(write(tmp_path / "c.yaml", "sources: [{name: a, path: b}]"))
    assert isinstance(corpus, CorpusConfig)
    assert load_any_config(write(tmp_path / "d.yaml", to_yaml(corpus))) == corpus


def test_every_problem_is_in_one_message(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml",
        "data: {sequence_lenght: 12, workers: null, corpus: c}\nmodel: 5\n"
        "train: {steps: x, strategy: zero9, skip_steps: [7, x]}\n"
        "optimizer: {betas: [1]}\nworkers: 2\n",
    )
    found = problems_of(path, "--train.micro_batch_size", "0", "stray", "--seed")
    assert found == [
        "'stray' is not an override; write `--section.key value`.",
        "--seed needs a value.",
        "data.sequence_lenght: unknown key. Did you mean `data.sequence_length`?",
        "data.workers: a value is missing; expected an integer.",
        "model: 5 is not a section; write `key: value` lines under it.",
        "train.steps: 'x' is not an integer.",
        "train.strategy: 'zero9' is not one of `single`, `ddp`, `zero1`, `zero2`, `zero3`.",
        "train.skip_steps: [7, 'x'] is not a list, each an integer.",
        "optimizer.betas: [1] is not a list of 2 values, each a number or null.",
        "workers: unknown key. Did you mean `data.workers`?",
        "run_directory: required; where the run lives, e.g. `runs/my_run`.",
        "train.micro_batch_size: 0 is below 1.",
    ]
    with pytest.raises(ConfigError, match=r"a.yaml: 8 problems\n  - data.sequence_lenght"):
        load_run_config(path, ["--run_directory", "x"])


def test_problems_inside_lists_name_their_place(tmp_path: Path) -> None:
    found = problems_of(write(tmp_path / "c.yaml", "sources: [{name: a, path: b, kind: foo}, 5, {nam: x}]"))
    assert "sources.0.kind: 'foo' is not one of `text`, `jsonl`, `parquet`, `datasets`, `fasta`, `integers`." in found
    assert "sources.1: 5 is not a section; write `key: value` lines under it." in found
    assert "sources.2.nam: unknown key. Did you mean `sources.N.name`?" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "key 'a' is written twice"),
        ("a: [1\nb: 2\n", "not valid YAML: while parsing a flow sequence"),
        ("- 1\n", "the file must hold `key: value` lines"),
        ("base: b.yaml\n", r"b\.yaml: 1 problem\n  - the file does not exist"),
    ],
)
def test_files_that_are_no_config(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run_config(write(tmp_path / "a.yaml", text))


def test_missing_file_directory_and_bytes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: 1 problem\n  - the file does not exist"):
        load_run_config(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="this is a directory; name a YAML file"):
        load_run_config(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_run_config(tmp_path / "a.yaml")


def test_a_base_may_not_have_a_base(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "seed: 1\n")
    write(tmp_path / "b.yaml", "base: a.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml has a base of its own; at most one level is allowed"):
        load_run_config(write(tmp_path / "c.yaml", "base: b.yaml\n"))


def test_words_that_old_yaml_takes_for_booleans_stay_words(tmp_path: Path) -> None:
    config = load_run_config(write(tmp_path / "a.yaml", MINIMAL + "monitor: {wandb: off, batch_digest: false}"))
    assert config.monitor.wandb == "off"
    assert config.monitor.batch_digest is False
    assert parse_overrides(["--a", "off", "--b", "yes", "--c", "True"]) == ({"a": "off", "b": "yes", "c": True}, [])


def test_overrides_are_yaml_scalars_and_strings_stay_strings() -> None:
    values, problems = parse_overrides(["--a.b", "1e-3", "--a.c=x y", "--a.d", "[1, 2]", "--e", "{"])
    assert values == {"a": {"b": 1e-3, "c": "x y", "d": [1, 2]}, "e": "{"}
    assert problems == []


def test_checking_a_config_imports_no_torch() -> None:
    program = (
        "import sys; from pipeline.config.loading import load_any_config; load_any_config('configs/bert_base.yaml'); "
        "print(*[name for name in ('torch', 'transformers', 'numpy', 'lightning') if name in sys.modules])"
    )
    repository = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
