"""Bytes of a shard: tar headers, npy headers, the index beside the tar, file names.

Everything here is a pure function of its arguments, so that equal documents give equal files everywhere: no time,
no user name, no library version reaches a byte.

Letters: D documents of a shard, B blocks, T tokens of a block.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError

TAR_BLOCK_BYTES: Final = 512
NPY_HEADER_BYTES: Final = 128
"""Divides by every item size, so the tokens of all members lie on one flat array over the whole tar."""
TAR_END: Final = bytes(2 * TAR_BLOCK_BYTES)
INDEX_MAGIC: Final = b"PRETRIDX"
INDEX_VERSION: Final = 2
MAX_DOCUMENT_TOKENS: Final = (1 << 32) - 1

INDEX_HEADER: Final = np.dtype(
    [("magic", "S8"), ("version", "<u4"), ("item_bytes", "<u4"), ("documents", "<u4"), ("blocks", "<u4")]
)
BLOCK_ENTRY: Final = np.dtype([("first_document", "<u4"), ("first_item", "<u8"), ("xxh3", "<u8")])
"""A block: its first document, its first token on the flat array, and XXH3-64 of its record's bytes in the tar, which
go from its first header to the next record's first header or to the end mark."""


def shard_name(split: str, number: int) -> str:
    """``"train/00007"``: how a shard is called in messages and on disk (plus ``.tar`` and ``.idx``)."""
    return f"{split}/{number:05d}"


def shard_path(directory: Path, split: str, number: int) -> Path:
    """Path of a shard's tar; the index is ``.with_suffix(".idx")``."""
    return directory / f"{shard_name(split, number)}.tar"


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 while every id fits, else uint32 (little endian)."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def tar_header(name: str, num_bytes: int) -> bytes:
    """512 bytes of USTAR header: mode 0644, owner 0:0, time 0."""
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    info.mode = 0o644
    return info.tobuf(format=tarfile.USTAR_FORMAT)


def padded(num_bytes: int) -> int:
    """``num_bytes`` rounded up to whole tar blocks."""
    return -(-num_bytes // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES


def npy_bytes(array: NDArray) -> bytes:
    """A 1-D little-endian array as npy version 1 with a header of exactly 128 bytes, whatever NumPy would choose."""
    array = np.ascontiguousarray(array)
    assert array.ndim == 1
    facts = f"{{'descr': '{array.dtype.newbyteorder('<').str}', 'fortran_order': False, 'shape': ({len(array)},), }}"
    magic = b"\x93NUMPY\x01\x00" + (NPY_HEADER_BYTES - 10).to_bytes(2, "little")
    header = magic + facts.ljust(NPY_HEADER_BYTES - 11).encode("ascii") + b"\n"
    assert len(header) == NPY_HEADER_BYTES
    return header + array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def index_bytes(item_bytes: int, lengths: NDArray[np.uint32], blocks: NDArray[np.void]) -> bytes:
    """The index file: header (24 bytes), lengths u32 (D,), block table (B,) of :data:`BLOCK_ENTRY`."""
    header = np.zeros(1, INDEX_HEADER)
    header[0] = (INDEX_MAGIC, INDEX_VERSION, item_bytes, len(lengths), len(blocks))
    return header.tobytes() + lengths.astype("<u4").tobytes() + blocks.astype(BLOCK_ENTRY).tobytes()


def parse_index(content: bytes, path: str) -> tuple[int, NDArray[np.uint32], NDArray[np.void]]:
    """Take an index apart.

    Returns:
        item size in bytes, lengths u32 (D,), block table (B,) of :data:`BLOCK_ENTRY`.

    Raises:
        UserError: not an index, a newer version, or truncated.
    """
    way_out = "Run `pretrain corpus verify`, then restore the file or build the corpus again."
    if len(content) < INDEX_HEADER.itemsize or not content.startswith(INDEX_MAGIC):
        raise UserError(f"{path} is not a shard index (its first bytes are {content[:8]!r}). {way_out}")
    header = np.frombuffer(content, INDEX_HEADER, count=1)[0]
    if header["version"] != INDEX_VERSION:
        raise UserError(
            f"{path} has index version {header['version']}; this program reads version {INDEX_VERSION}. "
            "Update pretrain, or build the corpus again with this version."
        )
    num_documents, num_blocks = int(header["documents"]), int(header["blocks"])
    expected = INDEX_HEADER.itemsize + 4 * num_documents + BLOCK_ENTRY.itemsize * num_blocks
    if len(content) != expected:
        raise UserError(
            f"{path} has {len(content)} bytes; {num_documents} documents in {num_blocks} blocks need {expected}. "
            f"{way_out}"
        )
    lengths = np.frombuffer(content, "<u4", count=num_documents, offset=INDEX_HEADER.itemsize)
    blocks = np.frombuffer(content, BLOCK_ENTRY, count=num_blocks, offset=INDEX_HEADER.itemsize + 4 * num_documents)
    return int(header["item_bytes"]), lengths, blocks


def record_borders(blocks: NDArray[np.void], item_bytes: int, num_bytes: int) -> NDArray[np.int64]:
    """Where every block's record begins in a tar of ``num_bytes``, and the place of the end mark: int64 (B+1,)."""
    first_bytes = blocks["first_item"].astype(np.int64) * item_bytes - NPY_HEADER_BYTES - TAR_BLOCK_BYTES
    return np.append(first_bytes, num_bytes - len(TAR_END))


def pack_bits(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Eight a byte, the first in the lowest bit: (T,) -> (ceil(T / 8),)."""
    return np.packbits(bits, bitorder="little")


def unpack_bits(packed: NDArray[np.uint8], begin: int, end: int) -> NDArray[np.bool_]:
    """Bits ``begin .. end-1`` of :func:`pack_bits`, bool (end - begin,)."""
    first_byte = begin >> 3
    bits = np.unpackbits(packed[first_byte : (end + 7) >> 3], bitorder="little")
    return bits[begin - 8 * first_byte : end - 8 * first_byte].view(np.bool_)


def document_starts(lengths: NDArray[np.uint32], blocks: NDArray[np.void]) -> NDArray[np.int64]:
    """First item of every document in the flat array over the tar, int64 (D,)."""
    before = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=before[1:])
    first_documents = blocks["first_document"].astype(np.int64)
    num_in_block = np.diff(np.append(first_documents, len(lengths)))
    shift = blocks["first_item"].astype(np.int64) - before[first_documents]
    return before[:-1] + np.repeat(shift, num_in_block)
