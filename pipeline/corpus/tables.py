"""Rows of Parquet files and of the Arrow files that `datasets` keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.base.errors import UserError
from pipeline.corpus.streams import open_binary
from pipeline.corpus.units import InputFile, Unit

_ROWS_A_BATCH = 1000


def group_sizes(file: InputFile) -> list[int]:
    """Rows of every row group (parquet) or record batch (arrow)."""
    if file.kind == "parquet":
        metadata = _parquet(file).metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return [batch.num_rows for batch in _arrow_batches(file)]


def column_names(file: InputFile) -> list[str]:
    """Columns of the table."""
    if file.kind == "parquet":
        return list(_parquet(file).schema_arrow.names)
    return list(_arrow_stream(file).schema.names)


def rows(unit: Unit, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows ``unit.begin .. unit.end-1`` as dicts of ``columns``.

    Raises:
        UserError: the file is damaged, or lacks a column that the first file of the source has.
    """
    missing = [name for name in columns if name not in column_names(unit.file)]
    if missing:
        raise UserError(
            f"{unit.file.place} has no column {missing[0]!r}, unlike the first file of its source; it has "
            f"{', '.join(column_names(unit.file))}. Give files of one shape, or two sources."
        )
    for batch in _batches(unit, columns):
        yield from batch.to_pylist()


def _batches(unit: Unit, columns: list[str]) -> Iterator[Any]:
    import pyarrow

    if unit.file.kind == "parquet":
        table = _parquet(unit.file)
        starts = [0]
        for size in group_sizes(unit.file):
            starts.append(starts[-1] + size)
        groups = [group for group in range(len(starts) - 1) if unit.begin <= starts[group] < unit.end]
        try:
            yield from table.iter_batches(batch_size=_ROWS_A_BATCH, row_groups=groups, columns=columns)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise _damaged(unit.file, error) from None
        return
    position = 0
    for batch in _arrow_batches(unit.file):
        if unit.begin <= position < unit.end:
            for begin in range(0, batch.num_rows, _ROWS_A_BATCH):
                yield batch.slice(begin, _ROWS_A_BATCH).select(columns)
        position += batch.num_rows


def _parquet(file: InputFile) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file.path if "://" not in file.path else open_binary(file.path))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        raise _damaged(file, error) from None


def _arrow_stream(file: InputFile) -> Any:
    import pyarrow

    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(file.path))
    except pyarrow.ArrowInvalid as error:
        raise _damaged(file, error) from None


def _arrow_batches(file: InputFile) -> Iterator[Any]:
    yield from _arrow_stream(file)


def _damaged(file: InputFile, error: BaseException) -> UserError:
    return UserError(
        f"{file.place} is damaged: {error}. Part of it cannot be read, so the build stops: repair or remove the file."
    )
