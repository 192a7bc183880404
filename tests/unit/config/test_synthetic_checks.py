"""Every problem of a synthetic corpus's config: one line that names the key and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.corpus import ShardConfig
from pipeline.config.loading import ConfigError, load_any_config, load_synthetic_config, to_yaml
from pipeline.config.synthetic import SyntheticConfig
from pipeline.config.synthetic_checks import synthetic_problems

SYNTHETIC = Path(__file__).parents[3] / "configs/corpus/synthetic.yaml"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "paired", "vocab_size": 64, "length": 128},
        {"kind": "paired", "length": 2, "max_length": 10},
        {"kind": "shuffle", "vocab_size": 16, "run_length": 16, "length": 3},
        {"kind": "nested", "vocab_size": 2, "max_depth": 1, "open_probability": 0.0},
        {"kind": "zipf", "exponent": 0.0, "seed": -1, "length": 1, "max_length": 1},
    ],
)
def test_what_is_allowed(values: dict[str, Any]) -> None:
    assert synthetic_problems(SyntheticConfig(**values)) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"documents": 0}, "documents: 0 is below 1."),
        ({"documents": 1 << 40}, "documents: 1099511627776 is above 2147483648."),
        ({"length": 0}, "length: 0 is below 1."),
        ({"length": 1 << 25}, "length: 33554432 is above 16777216."),
        ({"max_length": 1 << 25}, "max_length: 33554432 is above 16777216."),
        ({"sentence_length": 0}, "sentence_length: 0 is below 1."),
        ({"run_length": 0}, "run_length: 0 is below 1."),
        ({"max_depth": 0}, "max_depth: 0 is below 1."),
        ({"vocab_size": 1}, "vocab_size: 1 is below 2."),
        ({"vocab_size": 1 << 25}, "vocab_size: 33554432 is above 16777216."),
        ({"exponent": -0.5}, "exponent: -0.5 must be a finite number, 0 or more."),
        ({"exponent": float("inf")}, "exponent: inf must be a finite number, 0 or more."),
        ({"open_probability": 1.5}, "open_probability: 1.5 is outside [0, 1]."),
        ({"seed": 1 << 63}, "seed: 9223372036854775808 does not fit 64 bits."),
        ({"shards": ShardConfig(validation_share=1.0)}, "shards.validation_share: 1.0 is outside [0, 1)."),
        ({"length": 128, "max_length": 64}, "max_length: 64 is below length (128); give the most tokens"),
        ({"kind": "paired", "length": 7}, "length: 7 is odd, but the tokens of kind `paired` come in pairs; use 8."),
        ({"kind": "nested", "max_length": 129}, "max_length: 129 is odd, but the tokens of kind `nested`"),
        ({"kind": "nested", "vocab_size": 9}, "vocab_size: 9 is odd, but kind `nested` has as many"),
        ({"kind": "paired", "vocab_size": 63}, "vocab_size: 63 is too small: a document of 128 tokens needs 64"),
        ({"kind": "shuffle", "vocab_size": 15}, "vocab_size: 15 is too small: a run needs 16 different words"),
    ],
)
def test_each_problem_is_named(values: dict[str, Any], message: str) -> None:
    (problem,) = synthetic_problems(SyntheticConfig(**values))
    assert problem.startswith(message)


def test_what_belongs_to_another_kind_is_no_problem() -> None:
    assert synthetic_problems(SyntheticConfig(kind="random", length=7, vocab_size=9)) == []


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_synthetic_config(SYNTHETIC, ["--kind", "zip"])
    (problem,) = caught.value.problems
    assert problem == "kind: 'zip' is not one of `random`, `zipf`, `paired`, `shuffle`, `nested`."


def test_a_resolved_config_loads_as_itself(tmp_path: Path) -> None:
    config = load_synthetic_config(SYNTHETIC, ["--kind", "shuffle", "--shards.tokens", "1000", "--max_length=256"])
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load_any_config(tmp_path / "resolved.yaml") == config
