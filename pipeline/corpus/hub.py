"""Data sets of the `datasets` library: downloaded and prepared by it, then read from its Arrow files like any table.

So a worker process needs neither the network nor the second that importing `datasets` takes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.config.corpus import SourceConfig
from pipeline.corpus.units import InputFile


def dataset_files(number: int, source: SourceConfig, work: Path) -> list[InputFile]:
    """Arrow files of a data set, by hub name, local folder, or folder written by ``save_to_disk``.

    Raises:
        UserError: `datasets` cannot load it (no such name, subset or split; no network), or it is empty.
    """
    dataset = _load(source)
    if getattr(dataset, "_indices", None) is not None or not dataset.cache_files:
        # Rows chosen out of other files, or in memory: write what it means to files of its own.
        saved = work / "datasets" / source.name
        dataset.save_to_disk(str(saved))
        from datasets import load_from_disk

        dataset = load_from_disk(str(saved))
    files: list[InputFile] = []
    first_row = 0
    for index, entry in enumerate(dataset.cache_files):
        path = Path(entry["filename"])
        file = InputFile(
            source=number,
            kind="arrow",
            path=str(path),
            name=source.split,
            place=f"{source.path} [{source.split}]",
            bytes=path.stat().st_size,
            modified=float(index),  # a cache may be made anew with the same content: only sizes count
            first_row=first_row,
        )
        files.append(file)
        first_row += _num_rows(file)
    if not files or not first_row:
        raise UserError(f"Source {source.name!r}: split {source.split!r} of {source.path!r} has no rows.")
    return files


def _num_rows(file: InputFile) -> int:
    from pipeline.corpus.tables import group_sizes

    return sum(group_sizes(file))


def _load(source: SourceConfig) -> Any:
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    local = Path(source.path)
    try:
        if (local / "dataset_info.json").is_file() or (local / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(source.path)
            if not isinstance(loaded, datasets.DatasetDict):
                return loaded
            if source.split not in loaded:
                raise ValueError(f"its splits are {', '.join(loaded)}")
            return loaded[source.split]
        return datasets.load_dataset(source.path, name=source.subset, split=source.split)
    except Exception as error:  # `datasets` raises some twenty classes here; all mean that the source is wrong
        subset = f", subset {source.subset!r}" if source.subset else ""
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"Source {source.name!r}: `datasets` cannot load {source.path!r}{subset}, split {source.split!r}: "
            f"{detail}. Check `path` (a hub name or a folder), `subset` and `split`, and the network or HF_HUB_OFFLINE."
        ) from error
