"""Bytes of a shard."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.shards.layout import (
    BLOCK_ENTRY,
    NPY_HEADER_BYTES,
    document_starts,
    index_bytes,
    npy_bytes,
    pack_bits,
    parse_index,
    record_borders,
    shard_path,
    tar_header,
    token_dtype,
    unpack_bits,
)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("size", [0, 1, 999, 123_456])
def test_npy_bytes_have_a_header_of_128_bytes_and_numpy_reads_them(dtype: str, size: int) -> None:
    array = (np.arange(size) * 7).astype(dtype)
    content = npy_bytes(array)
    assert len(content) == NPY_HEADER_BYTES + array.nbytes
    loaded = np.load(io.BytesIO(content))
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


def test_tar_header_is_that_of_a_plain_file() -> None:
    info = tarfile.TarInfo.frombuf(tar_header("000000.tokens.npy", 700), "utf-8", "strict")
    assert (info.name, info.size, info.mode, info.mtime, info.uid, info.gid) == (
        "000000.tokens.npy",
        700,
        0o644,
        0,
        0,
        0,
    )
    assert info.isreg()


def test_token_dtype_changes_after_65536_ids() -> None:
    assert token_dtype(65_536).name == "uint16"
    assert token_dtype(65_537).name == "uint32"


def test_shard_path_has_five_digits_or_more() -> None:
    assert shard_path(Path("corpus"), "train", 7) == Path("corpus/train/00007.tar")
    assert shard_path(Path("corpus"), "train", 123_456) == Path("corpus/train/123456.tar")


def test_index_is_24_bytes_and_its_tables_and_reads_back() -> None:
    lengths = np.array([5, 1, 9, 2], np.uint32)
    blocks = np.array([(0, 320, 5), (3, 1000, 1 << 63)], BLOCK_ENTRY)
    content = index_bytes(2, lengths, blocks)
    assert len(content) == 24 + 4 * 4 + 2 * 20
    item_bytes, read_lengths, read_blocks = parse_index(content, "x.idx")
    assert item_bytes == 2
    np.testing.assert_array_equal(read_lengths, lengths)
    np.testing.assert_array_equal(read_blocks, blocks)
    np.testing.assert_array_equal(document_starts(read_lengths, read_blocks), [320, 325, 326, 1000])
    np.testing.assert_array_equal(record_borders(read_blocks, 2, 9000), [0, 2000 - 640, 9000 - 1024])


def test_bits_pack_and_unpack_at_any_place() -> None:
    generator = np.random.default_rng(0)
    for num_bits in (1, 7, 8, 9, 100):
        bits = generator.random(num_bits) < 0.5
        packed = pack_bits(bits)
        assert packed.tolist() == [
            sum(int(bit) << place for place, bit in enumerate(bits[first : first + 8]))
            for first in range(0, num_bits, 8)
        ]
        for begin in range(num_bits):
            for end in range(begin, num_bits + 1):
                np.testing.assert_array_equal(unpack_bits(packed, begin, end), bits[begin:end])


def test_parse_index_refuses_what_it_cannot_read() -> None:
    content = index_bytes(2, np.array([5], np.uint32), np.array([(0, 320, 5)], BLOCK_ENTRY))
    with pytest.raises(UserError, match=r"x\.idx is not a shard index .*corpus verify"):
        parse_index(b"something else altogether", "x.idx")
    with pytest.raises(UserError, match=r"x\.idx has 47 bytes; 1 documents in 1 blocks need 48"):
        parse_index(content[:-1], "x.idx")
    newer = content[:8] + (3).to_bytes(4, "little") + content[12:]
    with pytest.raises(UserError, match=r"x\.idx has index version 3; this program reads version 2.*Update pretrain"):
        parse_index(newer, "x.idx")
