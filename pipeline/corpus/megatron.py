"""Megatron-LM's `.bin/.idx` pair, read and written in plain NumPy.

Layout of the `.idx`, little endian, from `megatron/core/datasets/indexed_dataset.py` of NVIDIA/Megatron-LM: the nine
bytes ``MMIDIDX\\0\\0``, version u64 (1), dtype code u8, S u64, D + 1 u64, lengths i32[S] in tokens, pointers i64[S] in
bytes into the `.bin`, documents i64[D+1]: the first sequence of every document, then S. The `.bin` is the tokens of all
sequences, end to end. A multimodal `.idx` has modes i8[S] after that.

Letters: S sequences, D documents, T tokens.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.corpus.token_source import TokenBatch, TokenSource, runs

MAGIC: Final = b"MMIDIDX\x00\x00"
VERSION: Final = 1
HEADER: Final = struct.Struct("<9sQBQQ")
DTYPES: Final = {1: "|u1", 2: "|i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
CODES: Final = {np.dtype(name): code for code, name in DTYPES.items()}
MAX_SEQUENCE_TOKENS: Final = (1 << 31) - 1
_UINT16_VOCABULARY: Final = 65_500
"""Below it Megatron-LM writes uint16, else int32."""

_WAY_OUT: Final = "Give a whole pair as Megatron-LM's tools/preprocess_data.py wrote it."
_POINTERS_A_CHUNK: Final = 1 << 22
_DOCUMENTS_A_CHUNK: Final = 1 << 16


@dataclass(frozen=True, eq=False)
class MegatronPair:
    """An open pair: everything is mapped, nothing is read."""

    prefix: Path
    """Path without ``.bin`` or ``.idx``."""

    lengths: NDArray[np.int32]
    """Tokens of every sequence, (S,)."""

    starts: NDArray[np.int64]
    """First byte of every sequence in the `.bin`, (S,)."""

    documents: NDArray[np.int64]
    """First sequence of every document, then S, (D+1,)."""

    tokens: NDArray[np.integer]
    """All tokens, (T,), of any integer dtype that the format knows."""


def megatron_prefix(path: Path) -> Path:
    """``a/text.idx`` or ``a/text.bin`` or ``a/text`` -> ``a/text``."""
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def with_ending(prefix: Path, ending: str) -> Path:
    """``a/v1.5`` -> ``a/v1.5.bin``: a prefix may hold dots."""
    return prefix.with_name(prefix.name + ending)


def open_megatron(prefix: Path) -> MegatronPair:
    """Map a pair and hold its two files against each other.

    Raises:
        UserError: a file is missing or truncated, it is another format, another version, an unknown or floating dtype,
            multimodal, its tables contradict each other, or the `.bin` is not the one that the `.idx` describes.
    """
    path = with_ending(prefix, ".idx")
    for file in (path, with_ending(prefix, ".bin")):
        if not file.is_file():
            raise UserError(f"{file} does not exist; a Megatron-LM data set is a pair of .bin and .idx. {_WAY_OUT}")
    dtype, num_sequences, num_borders = _read_header(path)
    lengths = _mapped(path, np.dtype("<i4"), HEADER.size, num_sequences)
    pointers = _mapped(path, np.dtype("<i8"), HEADER.size + 4 * num_sequences, num_sequences)
    documents = _mapped(path, np.dtype("<i8"), HEADER.size + 12 * num_sequences, num_borders)
    if len(lengths) and int(lengths.min()) < 0:
        raise UserError(f"{path}: sequence {int(np.argmax(lengths < 0))} has a negative length. {_WAY_OUT}")
    if documents[0] != 0 or documents[-1] != num_sequences or (np.diff(documents) < 0).any():
        raise UserError(f"{path}: the document indices do not rise from 0 to its {num_sequences} sequences. {_WAY_OUT}")
    num_tokens = _check_pointers(path, lengths, pointers, dtype.itemsize)
    binary = with_ending(prefix, ".bin")
    num_bytes = binary.stat().st_size
    if num_bytes != num_tokens * dtype.itemsize:
        state = "it is truncated" if num_bytes < num_tokens * dtype.itemsize else "it belongs to another .idx"
        raise UserError(
            f"{binary} has {num_bytes} bytes; {path.name} describes {num_tokens} tokens of {dtype.name}, "
            f"{num_tokens * dtype.itemsize} bytes: {state}. {_WAY_OUT}"
        )
    return MegatronPair(prefix, lengths, pointers, documents, _mapped(binary, dtype, 0, num_tokens))


def _read_header(path: Path) -> tuple[np.dtype, int, int]:
    """dtype, S and D + 1, after the size of the file was held against them."""
    with open(path, "rb") as file:
        content = file.read(HEADER.size)
        num_bytes = os.fstat(file.fileno()).st_size
    if not content.startswith(MAGIC):
        older = " (fairseq's older format)" if content.startswith(b"TNTIDX\x00\x00") else ""
        raise UserError(
            f"{path} is no Megatron-LM index: it begins with {content[:9]!r}{older}, not {MAGIC!r}. {_WAY_OUT}"
        )
    if len(content) < HEADER.size:
        raise UserError(f"{path} has {num_bytes} bytes, less than its header of {HEADER.size}. {_WAY_OUT}")
    _, version, code, num_sequences, num_borders = HEADER.unpack(content)
    if version != VERSION:
        raise UserError(f"{path} has version {version}; this program reads version {VERSION}. {_WAY_OUT}")
    if code not in DTYPES:
        known = ", ".join(f"{code} {np.dtype(name).name}" for code, name in DTYPES.items())
        raise UserError(f"{path} has the dtype code {code}; known are {known}. {_WAY_OUT}")
    dtype = np.dtype(DTYPES[code])
    if dtype.kind == "f":
        raise UserError(f"{path} holds {dtype.name} values (dtype code {code}), no token ids. {_WAY_OUT}")
    expected = HEADER.size + 12 * num_sequences + 8 * num_borders
    if num_bytes == expected + num_sequences and num_sequences:
        raise UserError(f"{path} is multimodal (it has a mode a sequence); only text can be imported.")
    if num_bytes != expected or not num_borders:
        raise UserError(
            f"{path} has {num_bytes} bytes; an index of {num_sequences} sequences and {num_borders} document indices "
            f"has {expected} (and at least one document index). {_WAY_OUT}"
        )
    return dtype, num_sequences, num_borders


def _mapped(path: Path, dtype: np.dtype, offset: int, count: int) -> NDArray[Any]:
    return np.memmap(path, dtype, "r", offset, (count,)) if count else np.zeros(0, dtype)


def _check_pointers(path: Path, lengths: NDArray[np.int32], pointers: NDArray[np.int64], item_bytes: int) -> int:
    """All tokens; every sequence must begin where the one before ends."""
    num_tokens = 0
    for begin in range(0, len(lengths), _POINTERS_A_CHUNK):
        chunk = lengths[begin : begin + _POINTERS_A_CHUNK].astype(np.int64)
        ends = num_tokens + np.cumsum(chunk)
        wrong = pointers[begin : begin + _POINTERS_A_CHUNK] != (ends - chunk) * item_bytes
        if wrong.any():
            sequence = begin + int(np.argmax(wrong))
            raise UserError(
                f"{path}: sequence {sequence} begins at byte {pointers[sequence]} of the .bin, not where the one "
                f"before it ends. {_WAY_OUT}"
            )
        num_tokens = int(ends[-1])
    return num_tokens


class MegatronSource(TokenSource):
    """The documents of a pair, called ``PREFIX/NUMBER``.

    Sequences are sentences if any document has several; where every document is one sequence, nothing is known of
    sentences.
    """

    cuts_at_eod = True

    def __init__(self, pair: MegatronPair, prefix: str) -> None:
        self.pair = pair
        self.prefix = prefix
        self.has_sentences = bool((np.diff(pair.documents) > 1).any())

    def sizes(self) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
        for begin in range(0, len(self.pair.documents) - 1, _DOCUMENTS_A_CHUNK):
            borders = self._borders(begin)
            yield [f"{self.prefix}/{begin + number}" for number in range(len(borders) - 1)], np.diff(borders)

    def batches(self) -> Iterator[TokenBatch]:
        for begin in range(0, len(self.pair.documents) - 1, _DOCUMENTS_A_CHUNK):
            borders = self._borders(begin)
            for first, last in runs(np.diff(borders)):
                yield self._batch(begin + first, borders[first : last + 1])

    def _borders(self, begin: int) -> NDArray[np.int64]:
        """First token of the documents from ``begin`` on, and the end of the last of them, (D+1,)."""
        sequences = self.pair.documents[begin : begin + _DOCUMENTS_A_CHUNK + 1]
        borders = np.full(len(sequences), len(self.pair.tokens), np.int64)
        inside = sequences < len(self.pair.starts)
        borders[inside] = self.pair.starts[sequences[inside]] // self.pair.tokens.itemsize
        return borders

    def _batch(self, first_document: int, borders: NDArray[np.int64]) -> TokenBatch:
        num_documents = len(borders) - 1
        ids = [f"{self.prefix}/{first_document + number}" for number in range(num_documents)]
        sentences = None
        if self.has_sentences:
            begin, end = self.pair.documents[first_document], self.pair.documents[first_document + num_documents]
            sentences = self.pair.starts[begin:end] // self.pair.tokens.itemsize - borders[0]
        tokens = np.asarray(self.pair.tokens[borders[0] : borders[-1]])
        return TokenBatch(ids, tokens, borders - borders[0], sentences)


def megatron_dtype(vocab_size: int) -> np.dtype:
    """What Megatron-LM's ``DType.optimal_dtype`` chooses: uint16 below 65,500 ids, else int32."""
    return np.dtype("<u2") if vocab_size < _UINT16_VOCABULARY else np.dtype("<i4")


class MegatronWriter:
    """Writes a pair: the `.bin` as tokens come, the `.idx` at :meth:`close`. Needs 12 bytes of memory a sequence.

    Args:
        prefix: path without ending; nothing may be there.
        dtype: as :func:`megatron_dtype` gives it.
        sentences: whether a sequence is a sentence, or a document.
    """

    def __init__(self, prefix: Path, dtype: np.dtype, sentences: bool) -> None:
        self.prefix = prefix
        self.dtype = dtype
        self.sentences = sentences
        self.num_tokens = 0
        self.num_sequences = 0
        self.num_documents = 0
        self._lengths: list[NDArray[np.int32]] = []
        self._documents: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._file: BinaryIO = open(with_ending(prefix, ".bin"), "xb")  # noqa: SIM115 - closed by __exit__

    def add(self, batch: TokenBatch) -> None:
        """Append documents."""
        borders = batch.borders
        sequences = np.ones(len(batch.borders) - 1, np.int64)
        if self.sentences:
            assert batch.sentences is not None
            borders = np.append(batch.sentences, len(batch.tokens))
            sequences = np.diff(np.searchsorted(batch.sentences, batch.borders))
        self._file.write(np.ascontiguousarray(batch.tokens, self.dtype).data)
        self._lengths.append(np.diff(borders).astype("<i4"))
        self._documents.append(self.num_sequences + np.cumsum(sequences, dtype=np.int64))
        self.num_tokens += len(batch.tokens)
        self.num_sequences += len(borders) - 1
        self.num_documents += len(sequences)

    def close(self) -> None:
        """Finish the `.bin` and write the `.idx`."""
        self._file.close()
        with open(with_ending(self.prefix, ".idx"), "xb") as file:
            header = (MAGIC, VERSION, CODES[self.dtype], self.num_sequences, self.num_documents + 1)
            file.write(HEADER.pack(*header))
            for lengths in self._lengths:
                file.write(lengths.tobytes())
            position = 0
            for lengths in self._lengths:
                ends = position + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
                file.write((ends - lengths.astype(np.int64) * self.dtype.itemsize).astype("<i8").tobytes())
                position = int(ends[-1]) if len(ends) else position
            for documents in self._documents:
                file.write(documents.astype("<i8").tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the pair, or after an exception only the file: its folder goes as a whole."""
        if kind is None:
            self.close()
        else:
            self._file.close()
