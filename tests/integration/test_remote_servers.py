"""Corpora on a real nginx and on an S3 server, both on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.shards.manifest import read_manifest
from pipeline.shards.remote import RemoteFiles
from tests.corpora import Corpus
from tests.remote_corpora import check_equal, quick_settings, small_corpus, wanted_tars
from tests.servers import nginx, s3

BUCKET = "corpora"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus") / "mine")


@pytest.mark.proof
@pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/bin"), reason="needs the Debian package nginx-light")
def test_nginx(corpus: Corpus, tmp_path: Path) -> None:
    with nginx(corpus.directory.parent, tmp_path / "nginx") as url:
        files = RemoteFiles(f"{url}/mine/", quick_settings(tmp_path / "cache"))
        files.fetch_ahead(wanted_tars(corpus))
        check_equal(files, corpus)
        # What another process left of a file, right or wrong, is gone on with by a range.
        name, num_bytes, sha256 = wanted_tars(corpus)[0]
        for right in (True, False):
            path = files._cache.path(name, sha256)
            content = path.read_bytes()
            files.distrust(name)
            partial = files._cache.claim(path)
            assert partial is not None
            with partial:
                files._cache.reserve(partial, num_bytes)
                partial.write(0, content[:5000] if right else bytes(5000))
            check_equal(files, corpus)
        assert (files.tokenizer_directory() / "tokenizer.json").read_text() == "{}"
        with pytest.raises(FileNotFoundError):
            files.read("rows/absent.npy")
    log = (tmp_path / "nginx" / "access.log").read_text()
    assert " 206 " in log
    assert " 404 " in log
    with pytest.raises(UserError, match=f"{url}/mine/manifest.json could not be fetched for 0.2 seconds"):
        read_manifest(RemoteFiles(f"{url}/mine", quick_settings(tmp_path / "cache", retry_seconds=0.2)))


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials of nobody, and none of this machine's."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def endpoint(aws: None, corpus: Corpus) -> Iterator[str]:
    with s3(corpus.directory.parent, BUCKET) as one:
        yield one


def test_s3(corpus: Corpus, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files_at(place: str, directory: str, **settings: Any) -> RemoteFiles:
        options = {"endpoint_url": endpoint}
        return RemoteFiles(f"s3://{place}", quick_settings(tmp_path / directory, storage_options=options, **settings))

    files = files_at(f"{BUCKET}/mine", "cache")
    files.fetch_ahead(wanted_tars(corpus))
    check_equal(files, corpus)
    assert (files.tokenizer_directory() / "tokenizer.json").read_text() == "{}"
    with pytest.raises(FileNotFoundError):
        files.read("rows/absent.npy")
    name, num_bytes, sha256 = wanted_tars(corpus)[0]
    with pytest.raises(UserError, match=rf"s3://{BUCKET}/mine/{name} has {num_bytes} bytes of"):
        files_at(f"{BUCKET}/mine", "longer").open(name, num_bytes + 1000, sha256)
    for place in (f"{BUCKET}/nothing", "no-such-bucket/mine"):
        with pytest.raises(UserError, match=f"No corpus at s3://{place}"):
            read_manifest(files_at(place, "cache"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=r"manifest\.json: access refused \(NoCredentialsError.*anon: true"):
        read_manifest(files_at(f"{BUCKET}/mine", "cache"))


def test_s3_without_a_server_is_an_error_after_the_time_set(aws: None, tmp_path: Path) -> None:
    options = {"endpoint_url": "http://127.0.0.1:9"}
    files = RemoteFiles("s3://corpora/mine", quick_settings(tmp_path, storage_options=options, retry_seconds=0.5))
    with pytest.raises(UserError, match=r"s3://corpora/mine/manifest\.json could not be fetched for 0\.5 seconds"):
        read_manifest(files)
