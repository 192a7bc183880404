"""Sources: what is found, in which order, and every mistake a user can make in them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from pipeline.base.errors import UserError
from pipeline.config.corpus import CleaningConfig, SourceConfig
from pipeline.corpus.build import build_corpus
from pipeline.corpus.sources import cut_into_units, find_files
from pipeline.corpus.units import Unit
from tests.unit.corpus.writing import config_of, make_texts, write_jsonl


def found(tmp_path: Path, *sources: SourceConfig) -> list[str]:
    return [file.name for file in find_files(sources, tmp_path / "work")]


def refused(tmp_path: Path, *sources: SourceConfig) -> str:
    with pytest.raises(UserError) as caught:
        find_files(sources, tmp_path / "work")
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/.hidden.txt", ".git/d.txt", "notes.md"):
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    return tmp_path / "texts"


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path, folder: Path) -> None:
    assert found(tmp_path, SourceConfig("t", "text", str(folder))) == ["a.txt", "b.txt", "sub/c.txt"]
    assert found(tmp_path, SourceConfig("t", "text", str(folder) + "/")) == ["a.txt", "b.txt", "sub/c.txt"]


@pytest.mark.parametrize(
    ("glob", "names"), [("*.md", ["notes.md"]), ("sub/*", ["sub/c.txt"]), ("[ab].txt", ["a.txt", "b.txt"])]
)
def test_a_glob_chooses(tmp_path: Path, folder: Path, glob: str, names: list[str]) -> None:
    assert found(tmp_path, SourceConfig("t", "text", str(folder), glob=glob)) == names


def test_a_file_is_a_source_whatever_its_ending(tmp_path: Path, folder: Path) -> None:
    [file] = find_files([SourceConfig("t", "text", str(folder / "notes.md"))], tmp_path)
    assert (file.name, file.place) == ("notes.md", str(folder / "notes.md"))


def test_a_file_name_need_not_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in (b"latin \xe9.txt", b"empty \xff.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name)).write_text("" if b"empty" in name else "some words")
    config = config_of(SourceConfig("t", "text", str(tmp_path / "in")), cleaning=CleaningConfig(max_bad_share=1.0))
    summary = build_corpus(config, tmp_path / "out", processes=1)
    assert summary.documents == 1
    assert summary.problems[0]["place"] == f"{tmp_path}/in/empty \\udcff.txt"


def test_links_are_followed_and_no_folder_is_read_twice(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.txt").write_text("text of e.txt")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "link.txt").symlink_to(tmp_path / "elsewhere/e.txt")
    (folder / "sub/back").symlink_to(folder)
    names = ["a.txt", "b.txt", "link.txt", "link/e.txt", "sub/c.txt"]
    assert found(tmp_path, SourceConfig("t", "text", str(folder))) == names
    (tmp_path / "blob").write_bytes(gzip.compress(b'{"text": "a"}'))
    (tmp_path / "a.jsonl.gz").symlink_to(tmp_path / "blob")  # as in the cache of the hub
    [file] = find_files([SourceConfig("t", "jsonl", str(tmp_path / "a.jsonl.gz"))], tmp_path)
    assert file.path.endswith(".gz")


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if os.path.basename(path) == "sub":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    config = config_of(SourceConfig("t", "text", str(folder)))
    with pytest.raises(UserError, match=r"No permission: .*sub"):
        build_corpus(config, tmp_path / "out", processes=1)


def test_all_endings_of_json_lines(tmp_path: Path) -> None:
    line = json.dumps({"text": "a"}).encode() + b"\n"
    contents = {
        "c.jsonl": line,
        "b.jsonl.gz": gzip.compress(line),
        "a.jsonl.zst": zstandard.ZstdCompressor().compress(line),
        "d.json": line,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert found(tmp_path, SourceConfig("t", "jsonl", str(tmp_path))) == ["a.jsonl.zst", "b.jsonl.gz", "c.jsonl"]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    message = refused(tmp_path, SourceConfig("books", "text", str(tmp_path / "absent")))
    assert f"Source 'books': the path '{tmp_path / 'absent'}' does not exist" in message


def test_a_folder_without_fitting_files_is_refused(tmp_path: Path, folder: Path) -> None:
    message = refused(tmp_path, SourceConfig("books", "jsonl", str(folder)))
    assert f"no file under '{folder}' matches *.jsonl, *.jsonl.gz, *.jsonl.zst (kind `jsonl`)" in message
    assert "matches *.tex" in refused(tmp_path, SourceConfig("books", "text", str(folder), glob="*.tex"))


def test_names_are_required_and_unique(tmp_path: Path, folder: Path) -> None:
    source = SourceConfig("t", "text", str(folder))
    assert "sources[1] has no name" in refused(tmp_path, source, SourceConfig("", "text", str(folder)))
    assert "Two sources are named 't'" in refused(tmp_path, source, source)
    assert "has no sources" in refused(tmp_path)


@pytest.mark.parametrize(("option", "field"), [("text_field", "body"), ("id_field", "url")])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_unknown_field_names_those_that_exist(tmp_path: Path, kind: str, option: str, field: str) -> None:
    records = [{"text": "a", "title": "b"}, {"text": "c", "lang": "d", "title": "e"}]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write_jsonl(path, [b"broken", *records])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    message = refused(tmp_path, SourceConfig("t", kind, str(path), **{option: field}))  # type: ignore[arg-type]
    names = "text, title, lang" if kind == "jsonl" else "text, title"
    assert f"{path} has no field '{field}'; it has {names}. Set `{option}`." in message


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    assert "a.parquet is damaged" in refused(tmp_path, SourceConfig("t", "parquet", str(tmp_path)))


def test_a_data_set_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path, SourceConfig("wiki", "datasets", "nobody/no-such-data-set", subset="en"))
    assert "Source 'wiki': `datasets` cannot load 'nobody/no-such-data-set', subset 'en', split 'train'" in message
    assert "Check `path` (a hub name or a folder), `subset` and `split`" in message


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(str(tmp_path / "saved"))
    message = refused(tmp_path, SourceConfig("d", "datasets", str(tmp_path / "saved"), split="test"))
    assert "split 'test': its splits are train" in message


def covered(units: list[Unit]) -> list[tuple[str, int, int]]:
    return [(unit.file.name, unit.begin, unit.end) for unit in units]


def test_large_plain_files_and_tables_are_cut_and_compressed_ones_are_not(tmp_path: Path) -> None:
    records: list[Any] = [{"text": text} for text in make_texts(300)]
    write_jsonl(tmp_path / "a.jsonl", records)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "c.parquet", row_group_size=40)
    sources = [SourceConfig("j", "jsonl", str(tmp_path)), SourceConfig("p", "parquet", str(tmp_path))]
    units = cut_into_units(find_files(sources, tmp_path), 12)
    plain = [unit for unit in units if unit.file.name == "a.jsonl"]
    assert len(plain) > 3
    assert plain[0].begin == 0
    assert [unit.begin for unit in plain[1:]] == [unit.end for unit in plain[:-1]]
    assert plain[-1].end == (tmp_path / "a.jsonl").stat().st_size
    assert covered([unit for unit in units if unit.file.name == "b.jsonl.gz"]) == [("b.jsonl.gz", 0, -1)]
    table = [unit for unit in units if unit.file.name == "c.parquet"]
    assert len(table) > 1
    assert [unit.begin for unit in table] == [0, *(unit.end for unit in table[:-1])]
    assert table[-1].end == 300
    assert all(unit.begin % 40 == 0 for unit in table)
    assert len(cut_into_units(find_files(sources, tmp_path), 0)) == 3
