"""What is told about a config to those outside the run."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.loading import load_run_config, to_plain
from pipeline.train.setup import shown_config


def test_options_that_may_hold_credentials_are_shown_by_name_only() -> None:
    config = load_run_config(Path("configs/bert_base.yaml"), ["--data.cache.storage_options", "{secret: s3cret}"])
    assert config.data.cache.storage_options == {"secret": "s3cret"}
    assert "s3cret" not in repr(shown_config(config))
    assert shown_config(config)["data"]["cache"]["storage_options"] == {"secret": "..."}
    assert {**shown_config(config), "data": None} == {**to_plain(config), "data": None}
