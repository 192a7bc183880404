"""Clean documents on disk between two stages: one text file and a few flat arrays a task.

Letters: D documents of a task.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from pipeline.base.files import write_bytes_atomically
from pipeline.corpus.reading import BAD_REASONS

DOCUMENT: Final = np.dtype(
    [
        ("text_end", "<u8"),  # bytes
        ("id_end", "<u8"),  # bytes
        ("split_key", "<u8"),  # keyed hashes of the id: which split,
        ("order_key", "<u8"),  # which place in it
        ("source", "<u4"),
    ]
)
TEXT_HASH: Final = np.dtype([("high", "<u8"), ("low", "<u8")])
"""blake2b of the clean text, 128 bits: two different texts among 10^12 meet with probability 10^-15."""


@contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A file for writing that is on the disk at the end: a task's mark must not outlive its data in a power failure."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def save_array(path: Path, array: NDArray) -> None:
    """``np.save`` of a 1-D array, durably. On a full disk ``np.save`` itself raises an error without a number."""
    with durable(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).view(np.uint8).data)


def id_keys(document_id: str, seed: int) -> tuple[int, int]:
    """Two 64-bit hashes of a document's id under the config's seed: for its split and for its order."""
    digest = hashlib.blake2b(
        document_id.encode(), digest_size=16, key=seed.to_bytes(16, "little", signed=True)
    ).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class TextStoreWriter(PipelineStep):
    """Last step of the first stage: stores the documents, counts everything, notes bad records with their place.

    Files of task ``NNNNN`` in ``directory``: ``.text``, ``.ids``, ``.documents.npy``, ``.hashes.npy``, and
    ``.facts.json``: per source the records read, clean documents and drops by reason, and the bad places.
    """

    type = "writer"
    name = "text store"

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__()
        self.directory = directory
        self.seed = seed

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Consumes all documents; yields none."""
        self.directory.mkdir(parents=True, exist_ok=True)
        entries: list[tuple[int, int, int, int, int]] = []
        hashes = bytearray()
        facts: dict[int, Counter[str]] = {}
        problems: list[dict[str, Any]] = []
        text_end = id_end = 0
        with (
            durable(_path(self.directory, rank, "text")) as texts,
            durable(_path(self.directory, rank, "ids")) as ids,
        ):
            for document in data or ():
                source = document.metadata["source"]
                counts = facts.setdefault(source, Counter())
                counts["records"] += 1
                if reason := document.metadata.get("drop"):
                    counts[f"drop:{reason}"] += 1
                    self.stat_update(f"dropped_{reason}")
                    if reason in BAD_REASONS:
                        problems.append(problem_of(document))
                    continue
                text, identity = document.text.encode(), document.id.encode()
                texts.write(text)
                ids.write(identity)
                text_end, id_end = text_end + len(text), id_end + len(identity)
                entries.append((text_end, id_end, *id_keys(document.id, self.seed), source))
                hashes += hashlib.blake2b(text, digest_size=16).digest()
                counts["clean_documents"] += 1
                self.stat_update("stored")
        save_array(_path(self.directory, rank, "documents.npy"), np.array(entries, DOCUMENT))
        save_array(_path(self.directory, rank, "hashes.npy"), np.frombuffer(bytes(hashes), TEXT_HASH))
        write_facts(self.directory, rank, facts, problems)
        yield from ()


def problem_of(document: Document) -> dict[str, Any]:
    """What the build log keeps of a bad record."""
    return {
        "source": document.metadata["source"],
        "place": document.metadata["place"],
        "reason": document.metadata["drop"],
        "detail": document.metadata.get("detail", ""),
    }


def write_facts(directory: Path, rank: int, facts: dict[int, Counter[str]], problems: list[dict[str, Any]]) -> None:
    """Counts per source and bad places of one task."""
    value = {"sources": {str(source): dict(counts) for source, counts in sorted(facts.items())}, "problems": problems}
    write_bytes_atomically(_path(directory, rank, "facts.json"), json.dumps(value).encode())


def read_facts(directory: Path, rank: int) -> tuple[dict[int, Counter[str]], list[dict[str, Any]]]:
    """What :func:`write_facts` wrote."""
    value = json.loads(_path(directory, rank, "facts.json").read_bytes())
    return {int(source): Counter(counts) for source, counts in value["sources"].items()}, value["problems"]


@dataclass(frozen=True, eq=False)
class TextStore:
    """The stored documents of one task; text and ids are memory-mapped."""

    documents: NDArray[np.void]
    """(D,) of :data:`DOCUMENT`."""

    text: Any
    """UTF-8 of all texts, end to end."""

    ids: Any
    """UTF-8 of all ids, end to end."""

    @classmethod
    def open(cls, directory: Path, rank: int) -> TextStore:
        """Open the store of task ``rank``."""
        return cls(read_documents(directory, rank), _mapped(directory, rank, "text"), _mapped(directory, rank, "ids"))

    def text_of(self, document: int) -> str:
        """Text of a document."""
        return self._slice(self.text, "text_end", document)

    def id_of(self, document: int) -> str:
        """Id of a document."""
        return self._slice(self.ids, "id_end", document)

    def _slice(self, content: Any, end: str, document: int) -> str:
        begin = int(self.documents[end][document - 1]) if document else 0
        return bytes(content[begin : int(self.documents[end][document])]).decode()


def read_documents(directory: Path, rank: int) -> NDArray[np.void]:
    """The document table of task ``rank``, (D,) of :data:`DOCUMENT`."""
    return np.load(_path(directory, rank, "documents.npy"))


def store_size(directory: Path, rank: int) -> tuple[int, int]:
    """Documents of task ``rank`` and bytes of their texts."""
    documents = read_documents(directory, rank)
    return len(documents), int(documents["text_end"][-1]) if len(documents) else 0


def read_hashes(directory: Path, rank: int) -> NDArray[np.void]:
    """Text hashes of task ``rank``, (D,) of :data:`TEXT_HASH`."""
    return np.load(_path(directory, rank, "hashes.npy"))


def _mapped(directory: Path, rank: int, ending: str) -> Any:
    path = _path(directory, rank, ending)
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


def _path(directory: Path, rank: int, ending: str) -> Path:
    return directory / f"{rank:05d}.{ending}"
