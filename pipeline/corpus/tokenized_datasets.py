"""Tokenised Hugging Face data sets: folders of `datasets.save_to_disk` and folders of Parquet files.

Columns: ``input_ids`` (list of integers, required), ``id`` (the name of the document), ``sentence_starts`` (list of
integers within the document). Other columns, such as ``attention_mask``, are left alone.

Letters: D documents of a batch, T tokens of a batch, N sentences of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.corpus.token_source import TokenBatch, TokenSource, runs

TOKENS_COLUMN: Final = "input_ids"
ID_COLUMN: Final = "id"
SENTENCES_COLUMN: Final = "sentence_starts"
_ROWS_A_BATCH: Final = 128
"""Few, because a row is a document of any length; the cost of a batch is small beside 128 documents."""

_DATASET_FILES: Final = ("dataset_info.json", "dataset_dict.json")


def is_dataset_folder(path: Path) -> bool:
    """Whether ``path`` looks like a data set that this module reads."""
    return any((path / name).is_file() for name in _DATASET_FILES) or any(path.rglob("*.parquet"))


def open_dataset_folder(path: Path) -> dict[str, Callable[[str], TokenSource]]:
    """Splits of a folder; each value makes the source of a split from the prefix of its documents' names.

    Args:
        path: written by ``save_to_disk`` (a ``Dataset`` or a ``DatasetDict``), or holding Parquet files: those in a
            subfolder are a split named after it, those called ``SPLIT-*.parquet`` of that split, others ``train``.
            A ``Dataset`` that does not say which split it is is ``train``.

    Raises:
        UserError: `datasets` cannot read it.
    """
    if not any((path / file).is_file() for file in _DATASET_FILES):
        return {split: _parquet_split(files) for split, files in _parquet_files(path).items()}
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # `datasets` and `pyarrow` raise a dozen classes; all mean that the folder is damaged
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"`datasets` cannot load {path}: {detail}. Give a folder that `save_to_disk` wrote completely."
        ) from error
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    return {str(split): _saved_split(path, dataset) for split, dataset in splits.items()}


def check_encodable(path: Path) -> None:
    """Refuse a name that neither Arrow nor a manifest can hold.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"The name {str(path)!a} is not UTF-8. Rename it.") from None


def _parquet_files(path: Path) -> dict[str, list[Path]]:
    by_split: dict[str, list[Path]] = {}
    # Some programs write a folder called `x.parquet`.
    for file in sorted(file for file in path.rglob("*.parquet") if file.is_file()):
        check_encodable(file)
        parts = file.relative_to(path).parts
        split = parts[0] if len(parts) > 1 else (file.stem.split("-")[0] if "-" in file.stem else "train")
        by_split.setdefault(split, []).append(file)
    return by_split


def _saved_split(path: Path, dataset: Any) -> Callable[[str], TokenSource]:
    def tables(columns: Sequence[str]) -> Iterator[Any]:
        yield from dataset.select_columns(list(columns)).with_format("arrow").iter(_ROWS_A_BATCH)

    return lambda prefix: TableSource(str(path), prefix, dataset.features.arrow_schema, tables)


def _parquet_split(files: list[Path]) -> Callable[[str], TokenSource]:
    import pyarrow.parquet

    def tables(columns: Sequence[str]) -> Iterator[Any]:
        for file in files:
            parquet = pyarrow.parquet.ParquetFile(file)
            if missing := [column for column in columns if column not in parquet.schema_arrow.names]:
                raise UserError(f"{file} has no column {missing[0]!r}, unlike {files[0]}. Give files of one shape.")
            yield from parquet.iter_batches(_ROWS_A_BATCH, columns=list(columns))

    def make(prefix: str) -> TokenSource:
        with _damage_reported(str(files[0])):
            schema = pyarrow.parquet.read_schema(files[0])
        return TableSource(str(files[0].parent), prefix, schema, tables)

    return make


@contextmanager
def _damage_reported(place: str) -> Iterator[None]:
    """What pyarrow raises at damaged data, as what the user can do about it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{place} is damaged: {error}. Repair or replace it.") from error


class TableSource(TokenSource):
    """Documents of Arrow tables.

    Args:
        place: folder or file, for messages.
        prefix: documents without an ``id`` are called ``PREFIX/ROW``, rows from 0.
        schema: the Arrow schema of all tables.
        tables: the rows as tables or record batches with the columns asked for, each call from the start.

    Raises:
        UserError: no ``input_ids``, or a column of another type than lists of integers.
    """

    cuts_at_eod = False

    def __init__(self, place: str, prefix: str, schema: Any, tables: Callable[[Sequence[str]], Iterator[Any]]) -> None:
        self.place = place
        self.prefix = prefix
        self.has_ids = ID_COLUMN in schema.names
        self.has_sentences = SENTENCES_COLUMN in schema.names
        self._tables = tables
        if TOKENS_COLUMN not in schema.names:
            raise UserError(
                f"{place} has no column {TOKENS_COLUMN!r}; it has {', '.join(schema.names) or 'none'}. Tokenise the "
                "data set first, or make a corpus of its text with `pretrain corpus build`."
            )
        for column in [TOKENS_COLUMN] + [SENTENCES_COLUMN] * self.has_sentences:
            _check_lists_of_integers(place, column, schema.field(column).type)

    def sizes(self) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
        for first_row, table in self._rows([TOKENS_COLUMN]):
            ids = self._ids(table, first_row)
            yield ids, self._lists(table, TOKENS_COLUMN, ids)[1]

    def batches(self) -> Iterator[TokenBatch]:
        for first_row, table in self._rows([TOKENS_COLUMN] + [SENTENCES_COLUMN] * self.has_sentences):
            ids = self._ids(table, first_row)
            tokens, lengths = self._lists(table, TOKENS_COLUMN, ids)
            borders = np.append(0, np.cumsum(lengths))
            sentences = self._sentences(table, ids, borders) if self.has_sentences else None
            for begin, end in runs(lengths):
                first, last = borders[begin], borders[end]
                inside = None
                if sentences is not None:
                    inside = sentences[(sentences >= first) & (sentences < last)] - first
                yield TokenBatch(ids[begin:end], tokens[first:last], borders[begin : end + 1] - first, inside)

    def _rows(self, columns: list[str]) -> Iterator[tuple[int, Any]]:
        first_row = 0
        with _damage_reported(self.place):
            for table in self._tables([ID_COLUMN] * self.has_ids + columns):
                yield first_row, table
                first_row += table.num_rows

    def _ids(self, table: Any, first_row: int) -> list[str]:
        if not self.has_ids:
            return [f"{self.prefix}/{first_row + row}" for row in range(table.num_rows)]
        ids = table.column(ID_COLUMN).to_pylist()
        if None in ids:
            raise UserError(f"{self.place}: row {first_row + ids.index(None)} has no id. Fill or drop the `id` column.")
        return [str(name) for name in ids]

    def _lists(self, table: Any, column: str, ids: list[str]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        """Values of all lists of a column end to end (T,), and their lengths (D,)."""
        import pyarrow.compute

        lists = table.column(column)
        values = pyarrow.compute.list_flatten(lists)
        if lists.null_count or values.null_count:
            row = next(row for row, value in enumerate(lists.to_pylist()) if value is None or None in value)
            raise UserError(f"{self.place}: {column!r} of document {ids[row]!r} is null or holds a null.")
        lengths = pyarrow.compute.list_value_length(lists)
        return values.to_numpy(), lengths.to_numpy().astype(np.int64)

    def _sentences(self, table: Any, ids: list[str], borders: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where sentences begin in the tokens of the table, (N,)."""
        starts, counts = self._lists(table, SENTENCES_COLUMN, ids)
        document = np.repeat(np.arange(len(ids)), counts)
        flat = starts.astype(np.int64) + borders[document]
        wrong = (starts < 0) | (flat >= borders[document + 1]) | (np.diff(flat, prepend=-1) <= 0)
        if wrong.any():
            name = ids[int(document[np.argmax(wrong)])]
            raise UserError(
                f"{self.place}: {SENTENCES_COLUMN!r} of document {name!r} must increase and stay below its number of "
                "tokens. Repair or drop the column."
            )
        return flat


def _check_lists_of_integers(place: str, column: str, kind: Any) -> None:
    import pyarrow

    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)
    if not is_list or not pyarrow.types.is_integer(kind.value_type):
        raise UserError(f"{place}: column {column!r} is {kind}; lists of integers are needed.")


class DatasetWriter:
    """Writes one split of a folder that ``datasets.load_from_disk`` opens: ``id`` and ``input_ids`` (int32).

    Args:
        folder: of the split and called like it; made at :meth:`close`.
        sentences: also write ``sentence_starts``.
        fingerprint: what the library shall call the data; equal data should have equal ones.
    """

    def __init__(self, folder: Path, sentences: bool, fingerprint: str) -> None:
        import datasets
        from datasets.arrow_writer import ArrowWriter

        columns = {ID_COLUMN: datasets.Value("string"), TOKENS_COLUMN: datasets.List(datasets.Value("int32"))}
        if sentences:
            columns[SENTENCES_COLUMN] = datasets.List(datasets.Value("int32"))
        self.features = datasets.Features(columns)
        self.folder = folder
        self.fingerprint = fingerprint
        self._rows = folder.with_name(f".{folder.name}.arrow")
        self._writer = ArrowWriter(path=str(self._rows), features=self.features)

    def add(self, batch: TokenBatch) -> None:
        """Append documents."""
        import pyarrow

        columns = {
            ID_COLUMN: pyarrow.array(batch.ids, pyarrow.string()),
            TOKENS_COLUMN: _arrow_lists(batch.tokens, batch.borders),
        }
        if SENTENCES_COLUMN in self.features:
            assert batch.sentences is not None
            first = np.searchsorted(batch.sentences, batch.borders)
            starts = batch.sentences - np.repeat(batch.borders[:-1], np.diff(first))
            columns[SENTENCES_COLUMN] = _arrow_lists(starts, first)
        self._writer.write_table(pyarrow.table(columns, schema=self.features.arrow_schema))

    def close(self) -> None:
        """Let the library lay the folder out: files of its usual size, with all it needs to load them."""
        import datasets
        from datasets.table import MemoryMappedTable

        self._writer.finalize()
        table = MemoryMappedTable.from_file(str(self._rows))
        info = datasets.DatasetInfo(features=self.features)
        dataset = datasets.Dataset(table, info, datasets.NamedSplit(self.folder.name), fingerprint=self.fingerprint)
        dataset.save_to_disk(str(self.folder))
        self._rows.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the split, or after an exception only the file: its folder goes as a whole."""
        if kind is None:
            self.close()
        else:
            self._writer.close()


def _arrow_lists(values: NDArray[np.integer], borders: NDArray[np.int64]) -> Any:
    import pyarrow

    return pyarrow.ListArray.from_arrays(
        pyarrow.array(borders.astype(np.int32)), pyarrow.array(values.astype(np.int32, copy=False))
    )
