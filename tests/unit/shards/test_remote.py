"""A corpus behind a URL reads as the same corpus on disk."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.files import corpus_files
from pipeline.shards.manifest import check_tokenizer, read_manifest
from pipeline.shards.reader import Shard
from pipeline.shards.remote import RemoteFiles
from tests.corpora import Corpus
from tests.remote_corpora import cached_bytes, check_equal, quick_settings, small_corpus, wanted_indexes, wanted_tars
from tests.servers import HostileServer, serving


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture
def server(corpus: Corpus) -> Iterator[HostileServer]:
    with serving(corpus.directory) as one:
        yield one


def remote(server: HostileServer, tmp_path: Path, **settings: object) -> RemoteFiles:
    files = corpus_files(server.url, quick_settings(tmp_path / "cache", **settings))
    assert isinstance(files, RemoteFiles)
    return files


def until_idle() -> None:
    while any(thread.name == "pretrain-download" for thread in threading.enumerate()):
        time.sleep(0.005)


def test_cold_and_warm_it_equals_the_local_corpus(corpus: Corpus, server: HostileServer, tmp_path: Path) -> None:
    check_equal(remote(server, tmp_path), corpus)
    assert server.count(".tar") == server.count(".idx") == 7
    server.requests.clear()
    check_equal(remote(server, tmp_path), corpus)
    assert {name for name, _ in server.requests} == {"manifest.json"}


def test_the_readers_of_shards_take_it(corpus: Corpus, server: HostileServer, tmp_path: Path) -> None:
    files = remote(server, tmp_path)
    manifest = read_manifest(files)
    check_tokenizer(files, manifest)
    assert manifest.fingerprint == corpus.manifest.fingerprint
    for number, documents in enumerate(corpus.documents["train"]):
        shard = Shard.open(files, "train", number, manifest)
        for document, expected in enumerate(documents):
            np.testing.assert_array_equal(shard.read(document), expected.tokens)


def flip_byte(directory: Path, pattern: str) -> None:
    """Change the bytes of cached files and not their size."""
    for path in directory.rglob(pattern):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_a_byte_changed_in_the_cache_is_found_by_the_reader_and_fetched_again_once(
    corpus: Corpus, server: HostileServer, tmp_path: Path
) -> None:
    files = remote(server, tmp_path)
    documents = corpus.documents["train"][0]
    Shard.open(files, "train", 0, corpus.manifest)
    flip_byte(tmp_path / "cache", "00000.tar.*")
    shard = Shard.open(files, "train", 0, corpus.manifest)
    for document, expected in enumerate(documents):
        np.testing.assert_array_equal(shard.read(document), expected.tokens)
    assert server.count("train/00000.tar") == 2

    flip_byte(tmp_path / "cache", "00000.tar.*")
    shard = Shard.open(files, "train", 0, corpus.manifest)
    shard._fetch_again = lambda: shard._mapped  # a second copy as wrong as the first
    with pytest.raises(UserError, match=rf"{server.url}/train/00000\.tar: block .* has XXH3 checksum"):
        shard.check_blocks(np.arange(len(shard.index.blocks)))


def test_a_copy_cut_short_in_the_cache_while_it_is_mapped_is_fetched_again(
    corpus: Corpus, server: HostileServer, tmp_path: Path
) -> None:
    shard = Shard.open(remote(server, tmp_path), "train", 0, corpus.manifest)
    (path,) = (tmp_path / "cache").rglob("00000.tar.*")
    os.truncate(path, 100)
    np.testing.assert_array_equal(shard.read(3), corpus.documents["train"][0][3].tokens)
    assert server.count("train/00000.tar") == 2


def test_a_failing_server_costs_only_time(corpus: Corpus, tmp_path: Path) -> None:
    shares = {"error500": 0.07, "error503": 0.07, "reset": 0.06, "truncate": 0.05, "stall": 0.02, "wrong_byte": 0.1}
    with serving(corpus.directory, shares=shares, stall_seconds=0.5, seed=3) as server:
        files = remote(server, tmp_path, download_threads=3)
        files.fetch_ahead(wanted_tars(corpus))
        check_equal(files, corpus)
        assert len(server.faults) >= 4


def test_prefetched_files_are_asked_for_once_and_then_there(
    corpus: Corpus, server: HostileServer, tmp_path: Path
) -> None:
    files = remote(server, tmp_path)
    wanted = wanted_tars(corpus)
    files.fetch_ahead(wanted)
    for name, num_bytes, sha256 in wanted:
        files.open(name, num_bytes, sha256).close()
    assert server.count(".tar") == len(wanted)


def test_indexes_of_unknown_size_are_fetched_ahead_too(corpus: Corpus, server: HostileServer, tmp_path: Path) -> None:
    files = remote(server, tmp_path)
    files.fetch_ahead([(name, None, sha256) for name, sha256 in wanted_indexes(corpus)])
    until_idle()
    server.folder = tmp_path  # nothing is there
    for name, sha256 in wanted_indexes(corpus):
        assert files.read(name, sha256) == (corpus.directory / name).read_bytes()


def test_a_list_longer_than_half_the_cache_is_cut(corpus: Corpus, server: HostileServer, tmp_path: Path) -> None:
    wanted = wanted_tars(corpus)
    files = remote(server, tmp_path, max_bytes=2 * (wanted[0][1] + wanted[1][1]) + 1)
    files.fetch_ahead(wanted)
    until_idle()
    assert server.count(".tar") == 2


def test_a_cache_for_two_shards_serves_them_all(corpus: Corpus, server: HostileServer, tmp_path: Path) -> None:
    largest = max(num_bytes for _, num_bytes, _ in wanted_tars(corpus))
    files = remote(server, tmp_path, max_bytes=2 * largest + 1000)
    for _ in range(2):
        for name, num_bytes, sha256 in wanted_tars(corpus):
            with files.open(name, num_bytes, sha256) as file:
                assert hashlib.sha256(file.read()).hexdigest() == sha256
            assert cached_bytes(tmp_path / "cache") <= 2 * largest + 1000 + 100
    assert server.count(".tar") == 10


def test_a_damaged_file_in_the_cache_is_fetched_again(corpus: Corpus, server: HostileServer, tmp_path: Path) -> None:
    files = remote(server, tmp_path)
    check_equal(files, corpus)
    for path in (tmp_path / "cache").rglob("*.tar.*"):
        os.truncate(path, path.stat().st_size - 1)
    for path in (tmp_path / "cache").rglob("*.idx.*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    check_equal(files, corpus)
    assert server.count(".tar") == server.count(".idx") == 14


def test_a_distrusted_file_is_fetched_again_and_partial_ones_are_left_alone(
    corpus: Corpus, server: HostileServer, tmp_path: Path
) -> None:
    files = remote(server, tmp_path)
    check_equal(files, corpus)
    partial = tmp_path / "cache" / next(path.name for path in (tmp_path / "cache").iterdir() if path.is_dir())
    partial = partial / "train" / "00001.tar.0123456789abcdef.partial"
    partial.write_bytes(bytes(9))
    files.distrust("train/00001.tar")
    check_equal(files, corpus)
    assert server.count("train/00001.tar") == 2
    assert server.count(".tar") == 8
    assert partial.exists()


def test_a_corpus_built_again_at_the_same_url_meets_no_old_file(corpus: Corpus, tmp_path: Path) -> None:
    with serving(corpus.directory) as server:
        check_equal(remote(server, tmp_path), corpus)
        other = small_corpus(tmp_path / "other", num_documents=41)
        server.folder = other.directory
        check_equal(remote(server, tmp_path), other)


def test_pickled_and_forked_copies_work_while_their_origin_fetches(
    corpus: Corpus, server: HostileServer, tmp_path: Path
) -> None:
    files = remote(server, tmp_path)
    files.fetch_ahead(wanted_tars(corpus))
    check_equal(pickle.loads(pickle.dumps(files)), corpus)
    files = remote(server, tmp_path / "second")
    files.fetch_ahead(wanted_tars(corpus)[::-1])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            files.fetch_ahead(wanted_tars(corpus))
            check_equal(files, corpus)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    check_equal(files, corpus)


def test_the_tokenizer_is_mirrored_with_what_it_has(corpus: Corpus, server: HostileServer, tmp_path: Path) -> None:
    config = corpus.directory / "tokenizer" / "tokenizer_config.json"
    config.write_text('{"a": 1}')
    try:
        folder = remote(server, tmp_path).tokenizer_directory()
        assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
        assert (folder / config.name).read_text() == '{"a": 1}'
        config.write_text('{"a": 2}')
        assert (remote(server, tmp_path).tokenizer_directory() / config.name).read_text() == '{"a": 2}'
    finally:
        config.unlink()
    assert {path.name for path in remote(server, tmp_path).tokenizer_directory().iterdir()} == {"tokenizer.json"}


def test_a_corpus_without_tokenizer_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty") as server, pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        remote(server, tmp_path).tokenizer_directory()


def test_optional_files_that_are_absent_or_refused_are_not_found(corpus: Corpus, tmp_path: Path) -> None:
    always = {"rows/b.npy": ["error403"], "manifest.json": ["", "", "error403"]}
    with serving(corpus.directory, always=always) as server:
        files = remote(server, tmp_path)
        with pytest.raises(FileNotFoundError):
            files.read("rows/a.npy")
        # As S3 answers for an absent file in a bucket that may not be listed.
        with pytest.raises(FileNotFoundError, match="or access to it is refused"):
            files.read("rows/b.npy")
        with pytest.raises(UserError, match="access refused"):
            files.read("manifest.json")


def test_no_corpus_at_the_url(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty") as server, pytest.raises(UserError, match=f"No corpus at {server.url}"):
        read_manifest(remote(server, tmp_path))


def test_derived_files_are_kept_beside_the_cache_and_not_evicted(
    corpus: Corpus, server: HostileServer, tmp_path: Path
) -> None:
    files = remote(server, tmp_path)
    with files.lock_derived():
        files.keep_derived("rows/a.npy", b"table")
    assert remote(server, tmp_path).read("rows/a.npy") == b"table"
    assert server.requests == []


@pytest.mark.parametrize("name", ["../manifest.json", "/etc/passwd", "train/../../a"])
def test_names_that_lead_out_are_refused(server: HostileServer, tmp_path: Path, name: str) -> None:
    files = remote(server, tmp_path)
    for attempt in (
        lambda: files.read(name),
        lambda: files.read(name, "ab" * 32),
        lambda: files.open(name, 1, "ab" * 32),
        lambda: files.distrust(name),
        lambda: files.keep_derived(name, b""),
    ):
        with pytest.raises(UserError, match="is not the name of a corpus file"):
            attempt()
    assert server.requests == []


def test_a_tar_is_not_opened_without_its_digest(server: HostileServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="by its sha256"):
        remote(server, tmp_path).open("train/00000.tar", 1)


def test_a_background_failure_is_told_where_the_file_is_needed(corpus: Corpus, tmp_path: Path) -> None:
    with serving(corpus.directory, shares={"error503": 1.0}) as server:
        files = remote(server, tmp_path, retry_seconds=0.5, download_threads=1)
        name, num_bytes, sha256 = wanted_tars(corpus)[0]
        files.fetch_ahead([(name, num_bytes, sha256)])
        while not server.requests:
            time.sleep(0.005)
        with pytest.raises(UserError, match=rf"{server.url}/{name} could not be fetched .*503"):
            files.open(name, num_bytes, sha256)
        server.shares.clear()
        files.open(name, num_bytes, sha256).close()
        assert files.read(*wanted_indexes(corpus)[0])
