"""From a config to the files of a corpus."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.config.run import CacheConfig
from pipeline.data.corpora import files_at
from pipeline.shards.cache import CacheSettings
from pipeline.shards.files import LocalFiles
from pipeline.shards.remote import RemoteFiles

URL = "https://host/corpus"


def test_a_path_is_local_and_touches_no_cache(tmp_path: Path) -> None:
    files = files_at("corpora/mine", CacheConfig(directory=str(tmp_path / "cache")))
    assert isinstance(files, LocalFiles)
    assert not (tmp_path / "cache").exists()


def test_a_url_gets_every_setting(tmp_path: Path) -> None:
    config = CacheConfig(str(tmp_path), 0.5, 3, 4.0, 5.0, {"headers": {"a": "b"}})
    files = files_at(URL, config)
    assert isinstance(files, RemoteFiles)
    assert files._settings == CacheSettings(tmp_path, 500_000_000, 3, 4.0, 5.0, {"headers": {"a": "b"}})


def test_the_defaults_of_config_and_library_agree() -> None:
    config, settings = CacheConfig(), CacheSettings()
    assert (Path(config.directory), config.gigabytes * 10**9) == (settings.directory, settings.max_bytes)
    for name in ("download_threads", "stall_seconds", "retry_seconds", "storage_options"):
        assert getattr(config, name) == getattr(settings, name)


def test_variables_of_the_node_are_put_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    files_at(URL, CacheConfig(directory="$NODE_DISK/cache"))
    assert os.listdir(tmp_path) == ["cache"]
    with pytest.raises(UserError, match=r"data\.cache\.directory: '\$NO_SUCH_DISK/x' names a variable that is not set"):
        files_at(URL, CacheConfig(directory="$NO_SUCH_DISK/x"))


def test_variables_stand_for_secrets_in_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "a$b")
    options = {"headers": {"Authorization": "Bearer ${TOKEN}"}, "n": 3}
    files = files_at(URL, CacheConfig(directory=str(tmp_path), storage_options=options))
    assert isinstance(files, RemoteFiles)
    assert files._settings.storage_options == {"headers": {"Authorization": "Bearer a$b"}, "n": 3}
    monkeypatch.delenv("TOKEN")
    with pytest.raises(UserError, match=r"data\.cache\.storage_options\.headers\.Authorization: .*TOKEN.*not set"):
        files_at(URL, CacheConfig(directory=str(tmp_path), storage_options=options))
