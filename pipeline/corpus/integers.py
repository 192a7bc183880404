"""Documents of integers (speech units, music, simulations): JSON lines ``{"ids": [...]}``, .npy and .npz.

Between the stages such a document is the text of its integers, ``17 5 99``, so that cleaning, duplicates, splits and
restarts are those of any text; a word-level tokenizer gives integer ``n`` the id of ``"n"``, behind the special tokens.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.config.corpus import MAX_INTEGERS
from pipeline.corpus.records import BadRecordError
from pipeline.corpus.streams import open_binary

INTEGERS_FIELD = "ids"
ARRAY_ENDINGS = (".npy", ".npz")
_MAX_INTEGER = MAX_INTEGERS - 1


def integers_of(record: dict[str, Any], field: str) -> NDArray[np.int64]:
    """The integers of a record of JSON lines, (T,).

    Raises:
        BadRecordError: ``missing_text``: no such field, or no list of integers from 0 to the largest.
    """
    if field not in record:
        raise BadRecordError("missing_text", f"no field {field!r}; it has {', '.join(record) or 'none'}")
    values = record[field]
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise BadRecordError("missing_text", f"field {field!r} is no list of integers")
    if values and not (min(values) >= 0 and max(values) <= _MAX_INTEGER):
        wrong = next(value for value in values if not 0 <= value <= _MAX_INTEGER)
        raise BadRecordError("missing_text", f"field {field!r} holds {wrong}; integers are 0 to {_MAX_INTEGER}")
    return np.array(values, np.int64)


def arrays_of(path: str, place: str) -> Iterator[tuple[str, NDArray[np.integer]]]:
    """Name and integers (T,) of every document of a .npy or .npz file.

    An array of one dimension is a document, one of two has a document a row. In a .npz the arrays come in the order of
    their names.

    Raises:
        UserError: not NumPy's format, or an array of another shape or type.
    """
    for name, array in _loaded(path, place):
        yield from _rows(name, array, place)


def _loaded(path: str, place: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name in the file and content of every array; a local .npy is mapped, not read."""
    is_mapped = path.endswith(".npy") and "://" not in path
    with open_binary(path) as file:
        try:
            loaded = np.load(path, mmap_mode="r") if is_mapped else np.load(file)
            if isinstance(loaded, np.ndarray):
                yield "", loaded
            else:
                for name in sorted(loaded):
                    yield name, loaded[name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{place}: NumPy cannot read it ({' '.join(str(error).split())}). Save arrays of integers with "
                "`numpy.save` or `numpy.savez`."
            ) from None


def _rows(name: str, array: NDArray[Any], place: str) -> Iterator[tuple[str, NDArray[np.integer]]]:
    shown = f"array {name!r} of {place}" if name else place
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"{shown}: {array.dtype} of shape {array.shape}; a document is an array of integers of one dimension, or a "
            "row of one of two. Convert it, or remove it from the source."
        )
    if array.ndim == 1:
        yield name, array
    else:
        yield from ((f"{name}:{row}" if name else str(row), values) for row, values in enumerate(array))


def parts_of(integers: NDArray[np.integer], max_symbols: int) -> Iterator[tuple[str, NDArray[np.integer]]]:
    """Documents of ``max_symbols`` integers at most and what distinguishes their names: ``:1-100``, or nothing."""
    if len(integers) <= max_symbols:
        yield "", integers
        return
    for begin in range(0, len(integers), max_symbols):
        part = integers[begin : begin + max_symbols]
        yield f":{begin + 1}-{begin + len(part)}", part


def text_of_integers(integers: NDArray[np.integer]) -> str:
    """``17 5 99``.

    Raises:
        BadRecordError: ``missing_text``: an integer below 0 or above the largest.
    """
    if len(integers) and not (int(integers.min()) >= 0 and int(integers.max()) <= _MAX_INTEGER):
        wrong = int(integers.min()) if int(integers.min()) < 0 else int(integers.max())
        raise BadRecordError("missing_text", f"it holds {wrong}; integers are 0 to {_MAX_INTEGER}")
    return " ".join(map(str, integers.tolist()))
