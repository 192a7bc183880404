"""The first half of the pipeline: units of input -> documents -> clean documents.

datatrove's own readers log and skip a broken line, give up a file at its first wrong byte and drop empty texts. Here a
record that cannot be used travels on as a document without text whose ``metadata["drop"]`` says why and whose
``metadata["place"]`` says where, so that the last step counts everything that was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.base import BaseReader
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.corpus import CleaningConfig, SourceConfig
from pipeline.corpus.cleaning import clean_text
from pipeline.corpus.counters import TaskCounter
from pipeline.corpus.fasta import FastaError, sequences
from pipeline.corpus.integers import ARRAY_ENDINGS, INTEGERS_FIELD, arrays_of, integers_of, parts_of, text_of_integers
from pipeline.corpus.records import BadRecordError, decode, parse_object, text_of
from pipeline.corpus.streams import DamagedFileError, chunks, limited, lines, open_binary
from pipeline.corpus.units import Unit, read_task

BAD_REASONS = ("unreadable", "bad_encoding", "missing_text", "empty", "no_tokens")
"""Reasons that count against ``cleaning.max_bad_share``; the others (``too_short``, ``duplicate``) are wanted."""


class UnitReader(BaseReader):
    """Reads the units of a task; every record becomes a document, a bad one too.

    Args:
        sources: the config's.
        tasks: directory with the units of every task.
        counters: file of progress counters.
    """

    name = "units"

    def __init__(self, sources: Sequence[SourceConfig], tasks: Path, counters: Path) -> None:
        super().__init__()
        self.sources = list(sources)
        self.tasks = tasks
        self.counters = counters

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents of task ``rank``, in input order."""
        counter = TaskCounter(self.counters, rank)
        for unit in read_task(self.tasks, rank):
            source = self.sources[unit.file.source]
            num_read = 0
            for document in _READERS[unit.file.kind](unit, source):
                document.metadata["source"] = unit.file.source
                self.stat_update("documents")
                num_read += len(document.text)
                counter.set(min(num_read, unit.weight))
                yield document
            counter.finish(unit.weight)


def _document(source: SourceConfig, identity: str, place: str, text: Callable[[], str]) -> Document:
    try:
        return Document(text=text(), id=f"{source.name}/{identity}", metadata={"place": place})
    except BadRecordError as error:
        return Document(
            text="",
            id=f"{source.name}/{identity}",
            metadata={"place": place, "drop": error.reason, "detail": error.detail},
        )


def _read_text(unit: Unit, source: SourceConfig) -> Iterator[Document]:
    with open_binary(unit.file.path) as file:
        try:
            content = b"".join(chunks(file, unit.file.path))
        except DamagedFileError as error:
            raise _damaged(unit.file.place, error) from None
    place = unit.file.place
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        newlines = content.count(b"\n", 0, error.start)
        place = f"{place}:{newlines + 1}"
    yield _document(source, unit.file.name, place, partial(decode, content))


def _read_jsonl(unit: Unit, source: SourceConfig) -> Iterator[Document]:
    number = unit.first
    with open_binary(unit.file.path) as file:
        pieces = chunks(file, unit.file.path) if unit.end < 0 else limited(file, unit.begin, unit.end)
        try:
            for line in lines(pieces):
                number += 1
                if line and not line.isspace():
                    yield _record_of_line(line, number, unit, source)
        except DamagedFileError as error:
            raise _damaged(f"{unit.file.place}:{number + 1}", error) from None


def _record_of_line(line: bytes, number: int, unit: Unit, source: SourceConfig) -> Document:
    place = f"{unit.file.place}:{number}"
    identity = f"{unit.file.name}:{number}"
    try:
        record = parse_object(line)
    except BadRecordError as error:
        return Document(
            text="",
            id=f"{source.name}/{identity}",
            metadata={"place": place, "drop": error.reason, "detail": error.detail},
        )
    return _document(source, _identity(record, source, identity), place, partial(text_of, record, source.text_field))


def _identity(record: dict, source: SourceConfig, default: str) -> str:
    value = record.get(source.id_field) if source.id_field else None
    if not isinstance(value, str | int) or value == "":
        return default
    return str(value).encode("utf-8", "replace").decode()


def _read_rows(unit: Unit, source: SourceConfig) -> Iterator[Document]:
    from pipeline.corpus.tables import rows

    columns = list(dict.fromkeys([source.text_field, *([source.id_field] if source.id_field else [])]))
    for number, record in enumerate(rows(unit, columns), start=unit.first):
        yield _document(
            source,
            _identity(record, source, f"{unit.file.name}:{number}"),
            f"{unit.file.place}:row {number}",
            partial(text_of, record, source.text_field),
        )


def _read_fasta(unit: Unit, source: SourceConfig) -> Iterator[Document]:
    place = unit.file.place
    with open_binary(unit.file.path) as file:
        try:
            for found in sequences(chunks(file, unit.file.path), source.max_symbols, source.uppercase):
                metadata = {"place": f"{place}:{found.line}"}
                if found.reason:
                    metadata |= {"drop": found.reason, "detail": found.detail}
                yield Document(text=found.letters, id=f"{source.name}/{found.name}", metadata=metadata)
        except DamagedFileError as error:
            raise _damaged(place, error) from None
        except FastaError as error:
            raise UserError(
                f"{place}:{error.line}: {error}. Source {source.name!r} is of kind `fasta`: repair the file, remove it "
                "from the source, or correct `kind`."
            ) from None


def _read_integers(unit: Unit, source: SourceConfig) -> Iterator[Document]:
    place = unit.file.place
    if unit.file.path.endswith(ARRAY_ENDINGS):
        for name, integers in arrays_of(unit.file.path, place):
            identity = f"{unit.file.name}:{name}" if name else unit.file.name
            yield from _documents_of_integers(source, identity, f"{place}:{name}" if name else place, integers)
        return
    with open_binary(unit.file.path) as file:
        number = 0
        try:
            for number, line in enumerate(lines(chunks(file, unit.file.path)), 1):
                if line and not line.isspace():
                    yield from _integers_of_line(line, number, unit, source)
        except DamagedFileError as error:
            raise _damaged(f"{place}:{number + 1}", error) from None


def _integers_of_line(line: bytes, number: int, unit: Unit, source: SourceConfig) -> Iterator[Document]:
    place, identity = f"{unit.file.place}:{number}", f"{unit.file.name}:{number}"
    try:
        record = parse_object(line)
        identity = _identity(record, source, identity)
        integers = integers_of(record, INTEGERS_FIELD)
    except BadRecordError as error:
        metadata = {"place": place, "drop": error.reason, "detail": error.detail}
        yield Document(text="", id=f"{source.name}/{identity}", metadata=metadata)
        return
    yield from _documents_of_integers(source, identity, place, integers)


def _documents_of_integers(
    source: SourceConfig, identity: str, place: str, integers: NDArray[np.integer]
) -> Iterator[Document]:
    for suffix, part in parts_of(integers, source.max_symbols):
        yield _document(source, identity + suffix, place, partial(text_of_integers, part))


def _damaged(place: str, error: DamagedFileError) -> UserError:
    return UserError(
        f"{place}: the compressed file is damaged ({error}). What follows cannot be read and nobody knows how much "
        "that is, so the build stops: repair the file, or remove it from the source, and run the command again."
    )


_READERS: dict[str, Callable[[Unit, SourceConfig], Iterator[Document]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_rows,
    "arrow": _read_rows,
    "fasta": _read_fasta,
    "integers": _read_integers,
}


class TextCleaner(PipelineStep):
    """Normalises texts and marks the documents that have nothing left, or too little."""

    type = "cleaner"
    name = "normal form, white space, length"

    def __init__(self, cleaning: CleaningConfig) -> None:
        super().__init__()
        self.cleaning = cleaning

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The same documents, in the same order."""
        for document in data or ():
            if "drop" not in document.metadata:
                if self.cleaning.normalize_unicode:
                    document.text = clean_text(document.text)
                if not document.text or document.text.isspace():
                    document.metadata |= {"drop": "empty", "detail": "no text"}
                elif len(document.text) < self.cleaning.min_characters:
                    document.metadata |= {"drop": "too_short", "detail": ""}
            yield document
