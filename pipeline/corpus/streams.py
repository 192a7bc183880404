"""Bytes and lines of a file, plain, gzip or zstd, that never end early without saying so.

Two traps are closed here. zstandard's ``stream_reader`` returns an end of file at the first of several frames and,
worse, at the place where a file was cut off; fsspec's ``compression="zstd"`` is made of it. And a text-mode reader
that meets one wrong byte gives up the rest of its file.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

_CHUNK_BYTES = 1 << 20
_LONGEST_ZSTD_WINDOW_BYTES = 1 << 31  # `zstd --long=31`
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COMPRESSED_ENDINGS = (".gz", ".zst")


class DamagedFileError(Exception):
    """A compressed file that is cut off or corrupt: what follows cannot be read, so nobody knows how much is lost."""


def open_binary(path: str) -> Any:
    """Open a local file, or a remote one through fsspec, for reading bytes."""
    if "://" not in path:
        return open(path, "rb")
    from datatrove.io import get_fs_with_filepath

    filesystem, inner = get_fs_with_filepath(path)
    return filesystem.open(inner, "rb")


def chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The decompressed content of an open file in pieces; the ending of ``name`` tells the compression.

    Raises:
        DamagedFileError: the compressed stream is cut off or corrupt; everything before was yielded.
    """
    if name.endswith(".gz"):
        yield from _gzip_chunks(file)
    elif name.endswith(".zst"):
        yield from _zstd_chunks(file)
    else:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _gzip_chunks(file: BinaryIO) -> Iterator[bytes]:
    reader = gzip.GzipFile(fileobj=file, mode="rb")
    while True:
        try:
            chunk = reader.read1(_CHUNK_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DamagedFileError(str(error)) from None
        if not chunk:
            return
        yield chunk


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_LONGEST_ZSTD_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    in_frame = False
    while compressed := file.read(_CHUNK_BYTES // 4):
        while compressed:
            try:
                content = frame.decompress(compressed)
            except zstandard.ZstdError as error:
                raise DamagedFileError(str(error)) from None
            if content:
                yield content
            in_frame = not frame.eof
            compressed = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = decompressor.decompressobj()
    if in_frame:
        raise DamagedFileError("the file ends in the middle of a zstd frame")


def lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Lines of a byte stream, without their newline; a byte order mark before the first one is taken off."""
    parts: list[bytes] = []
    first = True
    for piece in pieces:
        *complete, tail = piece.split(b"\n")
        for line in complete:
            whole = b"".join([*parts, line]) if parts else line
            parts = []
            yield whole.removeprefix(_BYTE_ORDER_MARK) if first else whole
            first = False
        if tail:
            parts.append(tail)
    if parts:
        whole = b"".join(parts)
        yield whole.removeprefix(_BYTE_ORDER_MARK) if first else whole


def limited(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """Bytes ``begin .. end-1`` of a seekable file in pieces."""
    file.seek(begin)
    left = end - begin
    while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk


def cut_at_lines(file: BinaryIO, size_bytes: int, num_parts: int) -> list[tuple[int, int, int]]:
    """Cut a plain file into about equal parts of whole lines.

    Returns:
        ``(begin, end, lines before begin)`` of every part, at most ``num_parts`` of them, none empty.
    """
    targets = [size_bytes * part // num_parts for part in range(1, num_parts)]
    cuts = [(0, 0)]
    position = num_lines = 0
    for chunk in limited(file, 0, size_bytes):
        while targets:
            newline = chunk.find(b"\n", max(0, targets[0] - 1 - position))
            if newline < 0:
                break
            cut = position + newline + 1
            if cuts[-1][0] < cut < size_bytes:
                cuts.append((cut, num_lines + chunk.count(b"\n", 0, newline + 1)))
            while targets and targets[0] <= cut:
                targets.pop(0)
        num_lines += chunk.count(b"\n")
        position += len(chunk)
    ends = [begin for begin, _ in cuts[1:]] + [size_bytes]
    return [(begin, end, before) for (begin, before), end in zip(cuts, ends, strict=True)]
