"""Byte streams and lines: nothing is lost at frames, cuts or chunk edges, and a damaged file says so."""

from __future__ import annotations

import gzip
import io

import numpy as np
import pytest
import zstandard

from pipeline.corpus import streams
from pipeline.corpus.streams import DamagedFileError, chunks, cut_at_lines, limited, lines

TEXT = b"".join(b"line %d %s\n" % (number, b"x" * (number % 37)) for number in range(3000))


def read(content: bytes, name: str) -> bytes:
    return b"".join(chunks(io.BytesIO(content), name))


def test_plain_gzip_and_zstd_give_the_same_bytes() -> None:
    compressor = zstandard.ZstdCompressor()
    assert read(TEXT, "a.jsonl") == TEXT
    assert read(gzip.compress(TEXT), "a.jsonl.gz") == TEXT
    assert read(compressor.compress(TEXT), "a.jsonl.zst") == TEXT


def test_all_frames_of_a_file_are_read() -> None:
    compressor = zstandard.ZstdCompressor()
    half = len(TEXT) // 2
    assert read(compressor.compress(TEXT[:half]) + compressor.compress(TEXT[half:]), "a.zst") == TEXT
    assert read(gzip.compress(TEXT[:half]) + gzip.compress(TEXT[half:]), "a.gz") == TEXT


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("lost_bytes", [1, 5, 400])
def test_a_file_that_is_cut_off_is_damaged(ending: str, lost_bytes: int) -> None:
    compress = gzip.compress if ending == ".gz" else zstandard.ZstdCompressor().compress
    with pytest.raises(DamagedFileError):
        read(compress(TEXT)[:-lost_bytes], f"a{ending}")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_what_is_not_compressed_is_damaged(ending: str) -> None:
    with pytest.raises(DamagedFileError):
        read(b"this is not compressed", f"a{ending}")


def test_an_empty_file_has_no_lines() -> None:
    for name in ("a", "a.gz", "a.zst"):
        assert list(lines(chunks(io.BytesIO(b""), name))) == []


def test_lines_do_not_depend_on_the_pieces() -> None:
    generator = np.random.default_rng(0)
    for content in (TEXT, TEXT + b"no newline at the end", b"\n\na\n\n", b"\xef\xbb\xbfmarked\nsecond\n"):
        expected = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        expected = expected[:-1] if not expected[-1] else expected
        for _ in range(20):
            cuts = np.unique(generator.integers(3, len(content) + 1, 5)).tolist()
            pieces = [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
            assert list(lines(iter(pieces))) == expected


def test_parts_of_a_file_are_whole_lines_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 101)
    generator = np.random.default_rng(1)
    for _ in range(60):
        sizes = generator.integers(0, 60, int(generator.integers(1, 80)))
        content = b"\n".join(b"y" * size for size in sizes.tolist()) + b"\n" * int(generator.integers(0, 2))
        if not content:
            continue
        num_parts = int(generator.integers(1, 12))
        parts = cut_at_lines(io.BytesIO(content), len(content), num_parts)
        assert 1 <= len(parts) <= num_parts
        assert b"".join(content[begin:end] for begin, end, _ in parts) == content
        assert all(begin < end for begin, end, _ in parts)
        assert [before for *_, before in parts] == [content.count(b"\n", 0, begin) for begin, *_ in parts]
        assert all(content[begin - 1 : begin] == b"\n" for begin, *_ in parts[1:])
        found = [line for begin, end, _ in parts for line in lines(limited(io.BytesIO(content), begin, end))]
        assert found == list(lines(iter([content])))


def test_parts_are_about_equal() -> None:
    parts = cut_at_lines(io.BytesIO(TEXT), len(TEXT), 7)
    sizes = [end - begin for begin, end, _ in parts]
    assert len(parts) == 7
    assert max(sizes) - min(sizes) < 200
