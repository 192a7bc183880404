"""A corpus of any size that exists only as arithmetic: index files are made when they are read.

Every index is one of a few templates of 10,000 documents each (log-normal lengths, mean 1,000 tokens), so that making
one costs a copy of 40 KB, no more than reading it from a warm page cache would.

Letters: D documents of a shard, N shards.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.engine import BERT_IDS
from pipeline.data.packing import find_packing
from pipeline.data.pieces import ShardLengths
from pipeline.data.row_format import row_format
from pipeline.data.row_tables import table_bytes
from pipeline.shards.files import CorpusFiles
from pipeline.shards.layout import BLOCK_ENTRY, NPY_HEADER_BYTES, TAR_BLOCK_BYTES, TAR_END, index_bytes, padded
from pipeline.shards.manifest import FORMAT_VERSION, Manifest, ShardTable, write_manifest

DOCUMENTS_A_SHARD: Final = 10_000
_MEAN_TOKENS: Final = 1_000
_NUM_TEMPLATES: Final = 16
_BLOCK_TOKENS: Final = 1 << 19
_VOCABULARY: Final = 30_522
_TOKEN_BYTES: Final = 2


class SyntheticFiles(CorpusFiles):
    """The files of a corpus of ``num_shards`` shards: manifest and row table from a directory, indexes made on demand.

    Args:
        directory: made by :func:`write`.
    """

    is_remote = False

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.location = str(directory)
        self._templates = [path.read_bytes() for path in sorted(directory.glob("*.template"))]
        self._rows = np.load(directory / "rows.npy")
        self.making_seconds = 0.0
        """Time spent in making indexes, in all: part of what is measured."""
        self.num_indexes = 0

    def describe(self, name: str) -> str:
        return f"{self.location}/{name}"

    def read(self, name: str, sha256: str | None = None) -> bytes:
        if name == "manifest.json":
            return (self.directory / name).read_bytes()
        if name.startswith("rows/"):
            return table_bytes(name, self._rows)
        before = time.perf_counter()
        number = int(name.rpartition("/")[2].removesuffix(".idx"))
        content = bytes(bytearray(self._templates[number % len(self._templates)]))
        self.making_seconds += time.perf_counter() - before
        self.num_indexes += 1
        return content

    def open(self, name: str, num_bytes: int | None = None, sha256: str | None = None) -> BinaryIO:
        raise FileNotFoundError(f"{name}: a synthetic corpus has no tars")

    def fetch_ahead(self, wanted: Sequence[tuple[str, int, str]]) -> None:
        pass

    def keep_derived(self, name: str, content: bytes) -> None:
        raise OSError("a synthetic corpus keeps nothing")

    @contextmanager
    def lock_derived(self) -> Iterator[None]:
        yield

    def tokenizer_directory(self) -> Path:
        raise FileNotFoundError("a synthetic corpus has no tokenizer")


def write(directory: Path, num_shards: int, sequence_length: int) -> None:
    """Templates, manifest and row table of a corpus; what is there already is used."""
    packing = find_packing("best_fit")
    version, done = f"{FORMAT_VERSION} {packing.version} {sequence_length}", directory / "done"
    if done.is_file() and done.read_text(encoding="utf-8") == version:
        return
    directory.mkdir(parents=True, exist_ok=True)
    templates = [_template(number) for number in range(_NUM_TEMPLATES)]
    which = np.arange(num_shards) % _NUM_TEMPLATES
    for number, (content, _, _) in enumerate(templates):
        (directory / f"{number:02d}.template").write_bytes(content)
    digests = [hashlib.sha256(content).hexdigest() for content, _, _ in templates]
    tokens = np.array([int(lengths.sum()) for _, lengths, _ in templates], np.int64)
    table = ShardTable(
        documents=np.full(num_shards, DOCUMENTS_A_SHARD, np.int64),
        tokens=tokens[which],
        bytes=np.array([num_bytes for _, _, num_bytes in templates], np.int64)[which],
        sha256="".join(hashlib.sha256(b"tar %d" % number).hexdigest() for number in range(num_shards)),
        index_sha256="".join(digests[template] for template in which.tolist()),
    )
    manifest = Manifest(
        tokenizer_fingerprint=hashlib.sha256(b"{}").hexdigest(),
        vocab_size=_VOCABULARY,
        special_ids=BERT_IDS,
        all_special_ids=sorted({number for number in BERT_IDS.values() if number is not None}),
        splits={"train": table},
    )
    write_manifest(directory, manifest)
    form = row_format(manifest, "bert", sequence_length)
    rows = [packing.count_rows(ShardLengths(lengths), form) for _, lengths, _ in templates]
    buffer = io.BytesIO()
    np.save(buffer, np.array(rows, np.int32)[which])
    (directory / "rows.npy").write_bytes(buffer.getvalue())
    done.write_text(version, encoding="utf-8")


def _template(number: int) -> tuple[bytes, NDArray[np.uint32], int]:
    """Bytes of an index, the lengths in it (D,), and the size of its tar."""
    random = np.random.default_rng(number)
    drawn = random.lognormal(np.log(_MEAN_TOKENS) - 0.5, 1.0, DOCUMENTS_A_SHARD)
    lengths = np.maximum(1, drawn).astype(np.uint32)
    before = np.cumsum(lengths) - lengths  # (D,)
    first_documents = np.flatnonzero(np.diff(before // _BLOCK_TOKENS, prepend=-1))
    blocks = np.zeros(len(first_documents), BLOCK_ENTRY)
    blocks["first_document"] = first_documents
    place = 0
    borders = np.append(before[first_documents], int(lengths.sum(dtype=np.int64)))
    for block, (begin, end) in enumerate(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True)):
        blocks["first_item"][block] = (place + TAR_BLOCK_BYTES + NPY_HEADER_BYTES) // _TOKEN_BYTES
        place += TAR_BLOCK_BYTES + padded(NPY_HEADER_BYTES + _TOKEN_BYTES * (end - begin))
    return index_bytes(_TOKEN_BYTES, lengths, blocks), lengths, place + len(TAR_END)
