"""Sources of integers: every form gives the same documents, ids stand behind the special tokens, mistakes are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.corpus import CleaningConfig, CorpusConfig, SourceConfig, TokenizerConfig
from pipeline.shards.verify import verify_corpus
from tests.unit.corpus.test_fasta import auto_tokenizer, documents_in
from tests.unit.corpus.writing import build, config_of, refused, write_jsonl

NUM_UNITS = 50


def units(count: int, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    lists = [generator.integers(0, NUM_UNITS - 1, int(generator.integers(5, 60))).tolist() for _ in range(count)]
    lists[count // 2][0] = NUM_UNITS - 1  # the largest one stands in one document only
    return lists


def config(path: Path, max_symbols: int = 100_000, id_field: str | None = None, **tokenizer: Any) -> CorpusConfig:
    source = SourceConfig("u", "integers", str(path), max_symbols=max_symbols, id_field=id_field)
    return config_of(source, tokenizer=TokenizerConfig(kind="integers", **tokenizer))


@pytest.mark.parametrize(("style", "shift", "last"), [("bert", 5, 0), ("roberta", 4, 1), ("gpt2", 1, 1)])
def test_ids_stand_behind_the_special_tokens(tmp_path: Path, style: Any, shift: int, last: int) -> None:
    lists = units(40)
    write_jsonl(tmp_path / "in/a.jsonl", [{"ids": values, "name": f"n{i}"} for i, values in enumerate(lists)])
    summary, _ = build(config(tmp_path / "in", id_field="name", style=style), tmp_path / "out")
    documents = documents_in(tmp_path / "out")
    assert documents == {f"u/n{i}": [value + shift for value in values] for i, values in enumerate(lists)}
    assert summary.vocab_size == shift + NUM_UNITS + last
    stock = auto_tokenizer(tmp_path / "out")
    assert stock(" ".join(map(str, lists[3])), add_special_tokens=False).input_ids == documents["u/n3"]
    assert stock.convert_ids_to_tokens(shift + 7) == "7"
    verify_corpus(tmp_path / "out")


def test_arrays_and_lines_in_one_folder(tmp_path: Path) -> None:
    lists = units(30)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/one.npy", np.array(lists[0], np.uint16))
    np.save(tmp_path / "in/rows.npy", np.array([values[:5] for values in lists[1:10]], np.int32))
    np.savez(tmp_path / "in/several.npz", b=np.array(lists[10]), a=np.array(lists[11]))
    lines = b"".join(json.dumps({"ids": values}).encode() + b"\n" for values in lists[12:])
    (tmp_path / "in/lines.jsonl.gz").write_bytes(gzip.compress(lines))
    summary, _ = build(config(tmp_path / "in", num_integers=60), tmp_path / "out")
    expected = {"u/one.npy": lists[0], "u/several.npz:b": lists[10], "u/several.npz:a": lists[11]}
    expected |= {f"u/rows.npy:{row}": values[:5] for row, values in enumerate(lists[1:10])}
    expected |= {f"u/lines.jsonl.gz:{number}": values for number, values in enumerate(lists[12:], 1)}
    found = {name: [value - 5 for value in ids] for name, ids in documents_in(tmp_path / "out").items()}
    assert found == expected
    assert summary.vocab_size == 65


def test_long_documents_are_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(25))
    build(config(tmp_path / "a.npy", max_symbols=10), tmp_path / "out")
    found = {name: len(ids) for name, ids in documents_in(tmp_path / "out").items()}
    assert found == {"u/a.npy:1-10": 10, "u/a.npy:11-20": 10, "u/a.npy:21-25": 5}


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'{"units": [1]}', "no field 'ids'; it has units"),
        (b'{"ids": "1 2"}', "field 'ids' is no list of integers"),
        (b'{"ids": [1, 2.5]}', "field 'ids' is no list of integers"),
        (b'{"ids": [true]}', "field 'ids' is no list of integers"),
        (b'{"ids": [1, -2]}', "field 'ids' holds -2; integers are 0 to 4194303"),
        (b'{"ids": [99999999999]}', "field 'ids' holds 99999999999"),
        (b"[1, 2]", "a JSON list, not an object"),
        (b'{"ids": []}', "no text"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, line: bytes, detail: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"ids": [1, 2]}, line])
    message = refused(config(path), tmp_path / "out")
    assert f"{path}:2 " in message
    assert detail in message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "a.npy: float64 of shape (3,); a document is an array of integers"),
        (np.zeros((2, 2, 2), int), "a.npy: int64 of shape (2, 2, 2)"),
        (np.array([1, None]), "NumPy cannot read it (Array can't be memory-mapped: Python objects"),
        (np.array([3, -1]), "a.npy missing_text (it holds -1; integers are 0 to 4194303)"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, array: Any, message: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    assert message in refused(config(tmp_path / "a.npy"), tmp_path / "out")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_arrays_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04nothing")
    assert f"{name}: NumPy cannot read it" in refused(config(tmp_path / name), tmp_path / "out")


def test_an_integer_beyond_the_set_number_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"ids": [1, 2]}, {"ids": [7, 3]}])
    message = refused(config(path, num_integers=7), tmp_path / "out")
    assert "Document 'u/a.jsonl:2' holds the integer 7; tokenizer.num_integers: 7 allows 0 to 6." in message


def test_a_damaged_compressed_file_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"ids": [1]}\n')[:-4])
    settings = CleaningConfig(max_bad_share=1.0)
    broken = config_of(
        SourceConfig("u", "integers", str(tmp_path / "a.jsonl.gz")),
        tokenizer=TokenizerConfig(kind="integers"),
        cleaning=settings,
    )
    assert "the compressed file is damaged" in refused(broken, tmp_path / "out")
