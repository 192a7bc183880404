"""Reading shards: lengths from the index alone, tokens by memory map, documents addressed without untarring.

No byte of a block is used before the block was held against its checksum in the index, whose own digest is in the
manifest.

Letters: D documents of a shard, B blocks, N sentences, T tokens.
"""

from __future__ import annotations

import json
import mmap
import os
import tarfile
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from pipeline.base.errors import UserError
from pipeline.shards.files import CorpusFiles
from pipeline.shards.index import WAY_OUT, ShardIndex, read_index
from pipeline.shards.layout import (
    NPY_HEADER_BYTES,
    TAR_BLOCK_BYTES,
    padded,
    shard_name,
    unpack_bits,
)
from pipeline.shards.manifest import Manifest

FetchAgain = Callable[[], mmap.mmap]
"""Maps a new copy of a tar that was fetched from elsewhere."""


class Shard:
    """One open shard: a read-only memory map and its index."""

    def __init__(
        self, path: str, index: ShardIndex, mapped: mmap.mmap, vocab_size: int, fetch_again: FetchAgain | None = None
    ) -> None:
        self.path = path
        """Where it is, for messages."""
        self.index = index
        self.tokens: NDArray[np.unsignedinteger]
        """The whole tar as one flat uint16 or uint32 array; document ``d`` is ``tokens[starts[d]:][:lengths[d]]``.
        Whoever reads from it calls :meth:`check_blocks` first."""
        self.vocab_size = vocab_size
        self._fetch_again = fetch_again
        self._num_bytes = len(mapped)
        self._use(mapped)
        self._checked = np.zeros(len(index.blocks), np.bool_)  # (B,)
        self._num_unchecked = len(index.blocks)
        self.first_items: NDArray[np.int64] = index.blocks["first_item"].astype(np.int64)
        """First item of every block, (B,)."""
        self.word_addresses = np.zeros(len(index.blocks), np.uint64)
        """Where the bits of :meth:`load_words` lie, 0 until they are loaded, (B,)."""
        self._words: dict[int, NDArray[np.uint8]] = {}
        self._members: dict[int, dict[str, NDArray[np.uint8]]] = {}

    @classmethod
    def open(cls, files: CorpusFiles, split: str, number: int, manifest: Manifest) -> Self:
        """Map a shard.

        Raises:
            UserError: missing, of another size than the manifest says (truncated), or a bad index.
        """
        name = f"{shard_name(split, number)}.tar"
        index = read_index(files, split, number, manifest)
        table = manifest.splits[split]
        arguments = files, name, int(table.bytes[number]), table.sha256_of(number)

        def fetch_again() -> mmap.mmap:
            files.distrust(name)
            return cls._map(*arguments)

        again = fetch_again if files.is_remote else None
        return cls(files.describe(name), index, cls._map(*arguments), manifest.vocab_size, again)

    @staticmethod
    def _map(files: CorpusFiles, name: str, expected: int, sha256: str) -> mmap.mmap:
        path = files.describe(name)
        try:
            opened = files.open(name, expected, sha256)
        except FileNotFoundError:
            raise UserError(f"The shard {path} does not exist. {WAY_OUT}") from None
        with opened as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if num_bytes != expected:
                raise UserError(f"{path} has {num_bytes} bytes; the manifest says {expected}. {WAY_OUT}")
            if hasattr(os, "posix_fadvise"):
                # Random first touches of cold pages are many times slower than one read-ahead of the file.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _use(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self.tokens = np.frombuffer(mapped, f"<u{self.index.item_bytes}")

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.index.lengths)

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """Tokens of every document, (D,)."""
        return self.index.lengths

    @property
    def is_checked(self) -> bool:
        """Whether all blocks have been held against their checksums."""
        return self._num_unchecked == 0

    def check_blocks(self, blocks: NDArray[np.int64]) -> None:
        """Hold blocks against their checksums and the vocabulary, each once in the life of this object.

        Args:
            blocks: numbers of blocks, in any order, repeated or not.

        Raises:
            UserError: changed bytes, a token id beyond the vocabulary, or a tar that shrank since it was opened; names
                the tar, the block and its place.
        """
        if self._num_unchecked:
            for block in np.unique(blocks[~self._checked[blocks]]).tolist():
                self._check_block(block)

    def _checksum(self, block: int) -> int | None:
        """Of a block's bytes; None if the tar shrank: a map has no pages beyond its end, and reading there kills."""
        return xxh3_64_intdigest(self._record(block).data) if self._mapped.size() >= self._num_bytes else None

    def _check_block(self, block: int) -> None:
        found, expected = self._checksum(block), int(self.index.blocks["xxh3"][block])
        if found != expected and self._fetch_again is not None:
            # The copy in the cache was right when it was fetched: its disk changed it. A second time it is no accident.
            mapped, self._fetch_again = self._fetch_again(), None
            self._use(mapped)
            found = self._checksum(block)
        if found is None:
            raise UserError(
                f"{self.path} has {self._mapped.size()} bytes; it had {self._num_bytes} when it was opened. {WAY_OUT}"
            )
        begin, end = self.index.borders[block : block + 2].tolist()
        where = f"{self.path}: block {block:06d} (bytes {begin} to {end})"
        if found != expected:
            raise UserError(
                f"{where} has XXH3 checksum {found:016x}; the index says {expected:016x}: its bytes have changed. "
                f"{WAY_OUT}"
            )
        first = self.first_items[block]
        last_document = self._end_document(block) - 1
        tokens = self.tokens[first : int(self.index.starts[last_document] + self.index.lengths[last_document])]
        if (largest := int(tokens.max())) >= self.vocab_size:
            item = first + int(np.argmax(tokens))
            raise UserError(
                f"{where} has token id {largest} at byte {item * self.index.item_bytes}, which is outside the "
                f"vocabulary of {self.vocab_size} ids: the shard was written with another tokenizer. Build the corpus "
                "again."
            )
        self._checked[block] = True
        # Counted anew: two threads may have checked the same block.
        self._num_unchecked = len(self._checked) - int(self._checked.sum())

    def read(self, document: int, begin: int = 0, end: int | None = None) -> NDArray[np.unsignedinteger]:
        """Tokens ``begin .. end-1`` of a document: a read-only view of the map.

        Raises:
            UserError: its block is damaged.
        """
        self.check_blocks(np.array([self._block_of(document)]))
        length = int(self.index.lengths[document])
        end = length if end is None else end
        if not 0 <= begin <= end <= length:
            raise IndexError(f"{self.path}: tokens {begin}..{end} of document {document}, which has {length}")
        start = int(self.index.starts[document])
        return self.tokens[start + begin : start + end]

    def document_ids(self, documents: Iterable[int]) -> list[str]:
        """Names of documents, in the order asked for; every block's list is parsed once a call.

        Raises:
            UserError: a block is damaged.
        """
        parsed: dict[int, list[str]] = {}
        names = []
        for document in documents:
            block = self._block_of(document)
            if block not in parsed:
                parsed[block] = json.loads(self._members_of(block)["ids.json"].tobytes())
            names.append(parsed[block][document - int(self.index.blocks["first_document"][block])])
        return names

    def sentence_starts(self, document: int) -> NDArray[np.int64]:
        """First token of every sentence of a document, within the document, (N,).

        Raises:
            UserError: the corpus was built without sentences, or a block is damaged.
        """
        block = self._block_of(document)
        sentences = self._sentences_of(block)
        begin = int(self.index.starts[document]) - self.first_items[block]
        end = begin + int(self.index.lengths[document])
        first, last = np.searchsorted(sentences, [begin, end])
        return sentences[first:last] - begin

    def sentences(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Sentences of the whole shard, document after document; reads the whole tar.

        Returns:
            tokens of every sentence, uint32 (N,); first sentence of every document and N, int64 (D+1,).

        Raises:
            UserError: the corpus was built without sentences, or a block is damaged.
        """
        lengths, first_sentences, num_sentences = [np.zeros(0, np.uint32)], [], 0
        for block, first_document in enumerate(self.index.blocks["first_document"].tolist()):
            sentences = self._sentences_of(block)  # (sentences of the block + 1,)
            starts = self.index.starts[first_document : self._end_document(block)] - self.first_items[block]
            self._check_sentences(block, sentences, starts)
            lengths.append(np.diff(sentences).astype(np.uint32))
            first_sentences.append(np.searchsorted(sentences, starts) + num_sentences)
            num_sentences += len(sentences) - 1
        return np.concatenate(lengths), np.concatenate([*first_sentences, [num_sentences]]).astype(np.int64)

    @cached_property
    def sentence_items(self) -> NDArray[np.int64]:
        """Items of ``tokens`` at which sentences begin, ascending, (N,); reads the whole tar once.

        Raises:
            UserError: as :meth:`sentences`.
        """
        lengths, first = self.sentences()
        ends = np.cumsum(lengths, dtype=np.int64)
        before = np.concatenate([np.zeros(1, np.int64), ends])[:-1]  # tokens of the shard before every sentence
        of_document = np.repeat(np.arange(len(first) - 1), np.diff(first))
        return self.index.starts[of_document].astype(np.int64) + before - before[first[of_document]]

    def load_words(self, block: int) -> NDArray[np.uint8]:
        """Which tokens of a block begin a word, a bit each, as ``layout.pack_bits`` packs them; without a copy.

        Raises:
            UserError: the corpus was built without words, or the block is damaged.
        """
        if block not in self._words:
            bits = self._array(block, "words", "word starts", np.dtype("u1"))
            last = self._end_document(block) - 1
            num_tokens = int(self.index.starts[last] + self.index.lengths[last] - self.first_items[block])
            if 8 * len(bits) < num_tokens:
                raise UserError(f"{self.path}: block {block:06d} has no word starts for all its tokens. {WAY_OUT}")
            self._words[block] = bits
            self.word_addresses[block] = bits.__array_interface__["data"][0]
        return self._words[block]

    def word_starts(self, first_item: int, num_tokens: int) -> NDArray[np.bool_]:
        """Whether each of ``tokens[first_item : first_item + num_tokens]``, all of one document, begins a word, (T,).

        Raises:
            UserError: as :meth:`load_words`.
        """
        block = int(np.searchsorted(self.first_items, first_item, side="right")) - 1
        begin = first_item - int(self.first_items[block])
        return unpack_bits(self.load_words(block), begin, begin + num_tokens)

    def _sentences_of(self, block: int) -> NDArray[np.int64]:
        """Where sentences begin in a block, every document's border and the end included."""
        return self._array(block, "sentences", "sentence offsets", np.dtype("<u4")).astype(np.int64)

    def _check_sentences(self, block: int, sentences: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """Refuse sentences that their writer got wrong: pieces made of them would reach into other documents."""
        end = starts[-1] + int(self.index.lengths[self._end_document(block) - 1])
        if sentences[-1] != end or (np.diff(sentences) <= 0).any() or not np.isin(starts, sentences).all():
            raise UserError(
                f"{self.path}: the sentences of block {block:06d} do not divide its {len(starts)} documents of "
                f"{end} tokens. {WAY_OUT}"
            )

    def _array(self, block: int, name: str, what: str, dtype: np.dtype) -> NDArray:
        """An optional array of a block, without a copy."""
        members = self._members_of(block)
        if f"{name}.npy" not in members:
            raise UserError(
                f"{self.path} has no {what}: build the corpus again with `shards.{name}: true` for objectives that "
                f"need {name}."
            )
        return members[f"{name}.npy"][NPY_HEADER_BYTES:].view(dtype)

    def _block_of(self, document: int) -> int:
        if not 0 <= document < self.documents:
            raise IndexError(f"{self.path} has no document {document}; it has {self.documents}")
        return int(self.index.block_of(np.array(document)))

    def _end_document(self, block: int) -> int:
        """The document after a block's last."""
        following = self.index.blocks["first_document"][block + 1 : block + 2]
        return int(following[0]) if len(following) else self.documents

    def _members_of(self, block: int) -> dict[str, NDArray[np.uint8]]:
        """Contents of a block's members by ending, found by walking its few tar headers."""
        if block in self._members:
            return self._members[block]
        self.check_blocks(np.array([block]))
        record = self._record(block)
        found: dict[str, NDArray[np.uint8]] = {}
        offset = 0
        while offset < len(record):
            begin = offset + TAR_BLOCK_BYTES
            info = tarfile.TarInfo.frombuf(record[offset:begin].tobytes(), "utf-8", "strict")
            found[info.name.partition(".")[2]] = record[begin : begin + info.size]
            offset = begin + padded(info.size)
        self._members[block] = found
        return found

    def _record(self, block: int) -> NDArray[np.uint8]:
        """All bytes of a block."""
        begin, end = self.index.borders[block : block + 2].tolist()
        return self.tokens.view(np.uint8)[begin:end]
