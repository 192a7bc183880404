"""The parts of a run: what is told of its config to others, what is refused before it begins."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.config.loading import load_run_config, to_plain
from pipeline.config.optimization import OptimizerConfig, ParameterGroupConfig
from pipeline.config.run import ModelConfig, RunConfig
from pipeline.train.setup import make_model, shown_config


def test_options_that_may_hold_credentials_are_shown_by_name_only() -> None:
    config = load_run_config(Path("configs/bert_base.yaml"), ["--data.cache.storage_options", "{secret: s3cret}"])
    assert config.data.cache.storage_options == {"secret": "s3cret"}
    assert "s3cret" not in repr(shown_config(config))
    assert shown_config(config)["data"]["cache"]["storage_options"] == {"secret": "..."}
    assert {**shown_config(config), "data": None} == {**to_plain(config), "data": None}


def test_a_group_without_a_parameter_is_refused() -> None:
    model = ModelConfig(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16, max_positions=16)
    groups = [ParameterGroupConfig("*.layer.0.*"), ParameterGroupConfig("*.layer.7.*")]
    config = RunConfig(model=model, optimizer=OptimizerConfig(groups=groups))
    manifest = types.SimpleNamespace(vocab_size=20, special_ids={"pad": 1, "mask": 4})
    streams: Any = types.SimpleNamespace(manifest=manifest)
    with pytest.raises(
        UserError, match=r"optimizer.groups: `\*.layer.7.\*`: no parameter of this model has such a name"
    ):
        make_model(config, streams)
