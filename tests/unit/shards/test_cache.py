"""The bounded cache: what is counted, what is evicted first and what never."""

from __future__ import annotations

import errno
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.cache import Cache, CacheSettings, checked_name
from pipeline.shards.locks import locked
from pipeline.shards.partial import Partial
from tests.remote_corpora import cached_bytes

MARK_BYTES = Partial.size_for(0)
COUNTER_BYTES = 20


def make_cache(directory: Path, max_bytes: int = 10_000) -> Cache:
    return Cache(CacheSettings(directory, max_bytes=max_bytes), "https://host/corpus")


def put(cache: Cache, name: str, num_bytes: int, last_use: int | None = None) -> Path:
    """A whole file in the cache, last used at a given second."""
    path = cache.path(name, "ab" * 32)
    partial = cache.claim(path)
    assert partial is not None
    with partial:
        assert cache.reserve(partial, num_bytes)
        partial.write(0, bytes(num_bytes))
        cache.publish(partial, path).close()
    if last_use is not None:
        os.utime(path, (last_use, last_use))
    return path


def test_layout_mirrors_the_corpus_under_the_digest_of_its_url(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    path = cache.path("train/00007.tar", "0123456789abcdef" * 4)
    assert path.parent.parent.parent == tmp_path
    assert (path.parent.name, path.name) == ("train", "00007.tar.0123456789abcdef")
    assert Cache(CacheSettings(tmp_path), "https://host/other").folder != cache.folder


def test_the_longest_unused_go_first_and_only_as_many_as_needed(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    paths = [put(cache, f"train/{number}.tar", 2000, last_use=1000 + number) for number in range(4)]
    used = cache.open(paths[0], 2000)
    assert used is not None
    used.close()
    put(cache, "train/new.tar", 4000)
    assert [path.exists() for path in paths] == [True, False, False, True]


def test_a_file_is_not_renamed_while_another_process_counts(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    path = cache.path("train/0.tar", "ab" * 32)
    partial = cache.claim(path)
    assert partial is not None
    assert cache.reserve(partial, 100)
    with partial, ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / ".lock"):
            published = pool.submit(cache.publish, partial, path)
            with pytest.raises(TimeoutError):
                published.result(timeout=0.2)
            assert partial.path.exists()
            assert not path.exists()
        published.result(timeout=10).close()
    assert path.exists()


def test_what_is_open_or_mapped_goes_last_and_stays_readable(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    old, new = put(cache, "old.tar", 4000, last_use=1000), put(cache, "new.tar", 4000, last_use=2000)
    file = cache.open(old, 4000)
    assert file is not None
    os.utime(old, (1000, 1000))
    mapped = np.memmap(file, np.uint8, mode="r")
    file.close()
    put(cache, "a.tar", 4000)
    assert (old.exists(), new.exists()) == (True, False)
    put(cache, "b.tar", 9000)
    assert not old.exists()
    assert mapped.sum() == 0
    assert len(mapped) == 4000


def test_what_is_being_fetched_is_counted_and_never_evicted(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    path = cache.path("slow.tar", "cd" * 32)
    with cache.claim(path) as slow:  # type: ignore[union-attr]  # the first claim of a new file gets it
        assert cache.reserve(slow, 6000)
        os.utime(slow.path, (1, 1))
        with cache.claim(cache.path("other.tar", "cd" * 32)) as other:  # type: ignore[union-attr]  # likewise
            assert not cache.reserve(other, 6000)
            assert cache.reserve(other, 3000)
        assert slow.path.exists()
        assert cached_bytes(tmp_path) <= 10_000
        slow.write(0, bytes(6000))
        cache.publish(slow, path).close()
    with cache.claim(cache.path("third.tar", "cd" * 32)) as third:  # type: ignore[union-attr]  # likewise
        assert cache.reserve(third, 6000)
    assert not path.exists()


def test_what_a_killed_process_left_is_counted_and_evicted(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    with cache.claim(cache.path("left.tar", "cd" * 32)) as left:  # type: ignore[union-attr]  # a new file
        assert cache.reserve(left, 6000)
    put(cache, "train/new.tar", 6000)
    assert not left.path.exists()


def test_a_file_larger_than_the_cache_says_so_and_evicts_nothing(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    path = put(cache, "small.tar", 100)
    with pytest.raises(
        UserError, match=r"big\.tar\.abababababababab has 20000 bytes.*may hold 10000.*data\.cache\.gig"
    ):
        put(cache, "big.tar", 20_000)
    assert path.exists()


def test_files_of_another_size_are_dropped_when_opened(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    path = put(cache, "a.tar", 100)
    os.truncate(path, 99)
    assert cache.open(path, 100) is None
    assert not path.exists()
    assert cache.open(path, 100) is None


def test_a_link_in_the_cache_is_not_followed(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = cache.path("a.tar", "ab" * 32)
    path.symlink_to(secret)
    with pytest.raises(UserError, match="cannot be used"), cache.disk_errors():
        cache.open(path, 6)


def test_a_pipe_and_a_folder_in_place_of_a_file_do_not_hold_the_reader(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    path = cache.path("a.tar", "ab" * 32)
    os.mkfifo(path)
    assert cache.open(path, 6) is None
    assert not path.exists()
    path.mkdir()
    num_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match=rf"cannot be used .*{path.name}"), cache.disk_errors():
        cache.open(path, 6)
    assert len(os.listdir("/proc/self/fd")) <= num_open


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_through_any_sequence(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    cache = make_cache(tmp_path, 20_000)
    for number in range(60):
        put(cache, f"train/{number}.tar", int(generator.integers(1, 6000)))
        if generator.random() < 0.2:
            cache.drop(cache.path(f"train/{generator.integers(number + 1)}.tar", "ab" * 32))
        if generator.random() < 0.1:
            (tmp_path / ".lock").write_bytes(b"")  # a count that was lost is counted anew
        assert cached_bytes(tmp_path) <= 20_000 + COUNTER_BYTES + MARK_BYTES


def test_files_that_nothing_was_reserved_for_are_counted_too(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    path = put(cache, "a.tar", 4000, last_use=1000)
    (cache.folder / "tokenizer").mkdir()
    (cache.folder / "tokenizer" / "tokenizer.json").write_bytes(bytes(3000))
    cache.count_anew()
    put(cache, "b.tar", 4000)
    assert not path.exists()
    assert (cache.folder / "tokenizer" / "tokenizer.json").exists()


def test_a_second_url_shares_the_bound(tmp_path: Path) -> None:
    first = make_cache(tmp_path)
    path = put(first, "a.tar", 6000, last_use=1000)
    put(Cache(CacheSettings(tmp_path, max_bytes=10_000), "s3://other"), "a.tar", 6000)
    assert not path.exists()


@pytest.mark.parametrize(
    "name", ["../a", "a/../b", "/etc/passwd", "", ".", "a//b", "a/.hidden", "a\n", "a?b", "a%2e%2e/b", "é", "a/"]
)
def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a corpus file"):
        make_cache(tmp_path).path(name, "ab" * 32)


@pytest.mark.parametrize("sha256", ["", "../../../x", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_digests_that_could_lead_elsewhere_are_refused(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(UserError, match=r"is not a sha256 .*the manifest gives for tokenizer/tokenizer\.json"):
        make_cache(tmp_path).path("tokenizer/tokenizer.json", sha256)


def test_names_of_corpora_pass() -> None:
    for name in ("manifest.json", "train/00007.tar", "rows/best_fit-1-512-2.npy", "a_b/100000.idx"):
        assert checked_name(name) == name


def test_a_directory_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cache directory .* cannot be used .*data\.cache\.directory"):
            make_cache(directory)


def test_a_directory_without_permission_says_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result, say = os.pipe()
    child = os.fork()
    if child == 0:  # root writes everywhere, so somebody else tries
        message = "no error"
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            make_cache(tmp_path / "cache")
        except UserError as error:
            message = str(error)
        finally:
            os.write(say, message.encode())
            os._exit(0)
    os.waitpid(child, 0)
    tmp_path.chmod(0o700)
    assert re.search(r"cannot be used \(Permission denied.*data\.cache\.directory", os.read(result, 10_000).decode())


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "disk of the cache .* is full .*larger disk"),
        (errno.EDQUOT, "disk of the cache .* is full"),
        (errno.ENOLCK, "has no file locks .*data.cache.directory"),
        (errno.EROFS, "cannot be used .*Read-only file system"),
    ],
)
def test_what_a_file_system_refuses_is_said_in_words(tmp_path: Path, number: int, text: str) -> None:
    with pytest.raises(UserError, match=text), make_cache(tmp_path).disk_errors():
        raise OSError(number, os.strerror(number), "name")


def test_other_errors_of_the_system_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output"), make_cache(tmp_path).disk_errors():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_cache(Path("~/cache")).root == tmp_path / "cache"
