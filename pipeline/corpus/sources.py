"""From the sources of the config to input files and units; every mistake in a source is found before work begins."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from pipeline.base.errors import UserError
from pipeline.config.corpus import SourceConfig
from pipeline.corpus.hub import dataset_files
from pipeline.corpus.integers import ARRAY_ENDINGS
from pipeline.corpus.streams import COMPRESSED_ENDINGS, DamagedFileError, chunks, cut_at_lines, lines, open_binary
from pipeline.corpus.units import InputFile, Unit, task_bytes

_FASTA_ENDINGS = (".fasta", ".fa", ".fna", ".ffn", ".faa")
USUAL_ENDINGS = {
    "text": (".txt",),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "fasta": tuple(name + packed for name in _FASTA_ENDINGS for packed in ("", *COMPRESSED_ENDINGS)),
    "integers": (".jsonl", ".jsonl.gz", ".jsonl.zst", *ARRAY_ENDINGS),
}
_Facts: TypeAlias = tuple[str, int, float]
"""What to open, size in bytes, time of the last change."""
_KINDS_WITH_FIELDS = ("jsonl", "parquet", "datasets")
_PROBED_RECORDS = 100
_PROBED_LINES = 1000


def find_files(sources: Sequence[SourceConfig], work: Path) -> list[InputFile]:
    """All files of all sources, in the order of the config and, in a source, of their names.

    Args:
        work: where data sets without a file of their own are saved.

    Raises:
        UserError: a name missing or used twice, a path that does not exist, no file that fits, a data set that
            `datasets` cannot load, or a text or id field that no record has.
    """
    _check_names(sources)
    files: list[InputFile] = []
    for number, source in enumerate(sources):
        found = dataset_files(number, source, work) if source.kind == "datasets" else _listed(number, source)
        if source.kind in _KINDS_WITH_FIELDS:
            _check_fields(source, found)
        files += found
    return files


def cut_into_units(files: Sequence[InputFile], num_tasks: int) -> list[Unit]:
    """Units in input order; large plain JSON-lines files and tables are cut to the size of a task."""
    limit = task_bytes(sum(file.weight for file in files), num_tasks)
    return [unit for file in files for unit in _units_of(file, limit)]


def _check_names(sources: Sequence[SourceConfig]) -> None:
    if not sources:
        raise UserError("The corpus config has no sources: name at least one under `sources:`.")
    names = [source.name for source in sources]
    if not all(names):
        raise UserError(
            f"sources[{names.index('')}] has no name: give every source a short `name`, the first part of its "
            "document ids."
        )
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"Two sources are named {name!r}: document ids start with the name, so names must be unique."
            )


def _listed(number: int, source: SourceConfig) -> list[InputFile]:
    root = Path(source.path)
    if "://" in source.path:
        names, facts_of = _remote_files(source.path)
    elif root.is_file():
        return [_input_file(number, source, root.name, source.path, _local_facts(root))]
    elif root.exists():
        names, facts_of = _names_below(root), lambda name: _local_facts(root / name)
    else:
        raise UserError(
            f"Source {source.name!r}: the path {source.path!r} does not exist (looked in {Path.cwd()} if it is "
            "relative). Correct `path`, or make the folder."
        )
    names = sorted(name for name in names if _fits(name, source))
    if not names:
        wanted = source.glob or ", ".join(f"*{ending}" for ending in USUAL_ENDINGS[source.kind])
        raise UserError(
            f"Source {source.name!r}: no file under {source.path!r} matches {wanted} (kind `{source.kind}`). "
            "Correct `path` or `kind`, or set `glob`."
        )
    base = source.path.rstrip("/")
    return [_input_file(number, source, name, f"{base}/{name}", facts_of(name)) for name in names]


def _remote_files(path: str) -> tuple[list[str], Callable[[str], _Facts]]:
    from datatrove.io import get_datafolder

    folder = get_datafolder(path)

    def facts_of(name: str) -> _Facts:
        info = folder.info(name)
        return folder.resolve_paths(name), info["size"], info.get("mtime") or 0.0

    # Listed without the pattern: fsspec's globs treat `*` and folders unlike the shell; here `*` also crosses folders.
    return folder.list_files(), facts_of


def _names_below(root: Path) -> list[str]:
    """Files below a local folder. Links to folders are followed, each folder once; fsspec would leave them out."""

    def fail(error: OSError) -> None:
        raise error  # a folder that cannot be read is not an empty one

    names: list[str] = []
    seen: set[str] = set()
    for directory, folders, files in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(directory)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        names += [] if real in seen else [(Path(directory) / name).relative_to(root).as_posix() for name in files]
        seen.add(real)
    return names


def _local_facts(path: Path) -> _Facts:
    facts = path.stat()
    # Not resolved: the target of a link may have another ending, and the ending tells the compression.
    return str(path.absolute()), facts.st_size, facts.st_mtime


def _input_file(number: int, source: SourceConfig, name: str, place: str, facts: _Facts) -> InputFile:
    path, num_bytes, modified = facts
    return InputFile(number, source.kind, path, _printable(name), _printable(place), num_bytes, modified)


def _printable(name: str) -> str:
    """A file name may hold bytes that are no UTF-8; ids and messages may not."""
    return name.encode("utf-8", "backslashreplace").decode()


def _fits(name: str, source: SourceConfig) -> bool:
    if any(part.startswith(".") for part in name.split("/")):
        return False
    if source.glob:
        return fnmatch.fnmatchcase(name, source.glob) or fnmatch.fnmatchcase(name.rpartition("/")[2], source.glob)
    return name.endswith(USUAL_ENDINGS[source.kind])


def _units_of(file: InputFile, limit: int) -> Iterator[Unit]:
    if file.kind == "jsonl" and not file.path.endswith(COMPRESSED_ENDINGS):
        with open_binary(file.path) as stream:
            parts = (
                cut_at_lines(stream, file.bytes, -(-file.bytes // limit))
                if file.bytes > limit
                else [(0, file.bytes, 0)]
            )
        for begin, end, before in parts:
            yield Unit(file, begin, end, before, end - begin)
    elif file.kind in ("parquet", "arrow"):
        yield from _units_of_rows(file, limit)
    else:
        yield Unit(file, weight=file.weight)


def _units_of_rows(file: InputFile, limit: int) -> Iterator[Unit]:
    """Runs of whole row groups (parquet) or record batches (arrow)."""
    from pipeline.corpus.tables import group_sizes

    sizes = group_sizes(file)
    num_rows = max(1, sum(sizes))
    begin = end = 0
    for size in sizes:
        end += size
        if (end - begin) * file.weight >= limit * num_rows:
            yield Unit(file, begin, end, file.first_row + begin, (end - begin) * file.weight // num_rows)
            begin = end
    if end > begin:
        yield Unit(file, begin, end, file.first_row + begin, (end - begin) * file.weight // num_rows)


def _check_fields(source: SourceConfig, files: Sequence[InputFile]) -> None:
    """Refuse a text or id field that the first file does not have, and name those that it has."""
    fields = _fields_of(files[0])
    if fields is None:
        return  # nothing readable at its beginning: the build counts and names those lines
    for option, field in (("text_field", source.text_field), ("id_field", source.id_field)):
        if field is not None and field not in fields:
            raise UserError(
                f"Source {source.name!r}: {files[0].place} has no field {field!r}; it has "
                f"{', '.join(fields) or 'none'}. "
                f"Set `{option}`."
            )


def _fields_of(file: InputFile) -> list[str] | None:
    if file.kind != "jsonl":
        from pipeline.corpus.tables import column_names

        return column_names(file)
    from pipeline.corpus.records import BadRecordError, parse_object

    fields: dict[str, None] = {}
    num_objects = 0
    with open_binary(file.path) as stream:
        try:
            for number, line in enumerate(lines(chunks(stream, file.path))):
                if num_objects >= _PROBED_RECORDS or number >= _PROBED_LINES:
                    break
                try:
                    fields |= dict.fromkeys(parse_object(line)) if line.strip() else {}
                    num_objects += bool(line.strip())
                except BadRecordError:
                    continue
        except DamagedFileError:
            pass  # the reader meets it again and reports its place
    return list(fields) if num_objects else None
