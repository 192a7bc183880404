"""`pretrain corpus synthesize`: the directory is a corpus like any other, and the same bytes every time."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from pipeline.base.errors import UserError
from pipeline.cli import main
from pipeline.config.corpus import ShardConfig
from pipeline.config.synthetic import SyntheticConfig
from pipeline.corpus.stats import corpus_stats, stats_lines
from pipeline.corpus.summary import BuildSummary
from pipeline.corpus.synthesize import deal_numbers, synthesize_corpus
from pipeline.corpus.synthetic import document_lengths, document_maker
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.reader import Shard
from pipeline.shards.verify import verify_corpus
from tests.unit.corpus.writing import files_of

SYNTHETIC = Path(__file__).parents[3] / "configs/corpus/synthetic.yaml"
SHARDS = ShardConfig(tokens=2000, block_tokens=500, validation_share=0.1)


def config_of(**values: Any) -> SyntheticConfig:
    sizes = {"documents": 200, "vocab_size": 60, "length": 20, "max_length": 60, "sentence_length": 8}
    return SyntheticConfig(**{**sizes, "shards": SHARDS, **values})


def synthesize(config: SyntheticConfig, output: Path, processes: int = 1) -> BuildSummary:
    return synthesize_corpus(config, output, processes=processes, console=Console(file=io.StringIO()))


def shards_of(directory: Path) -> dict[str, list[Shard]]:
    files = LocalFiles(directory)
    manifest = read_manifest(files)
    return {
        split: [Shard.open(files, split, number, manifest) for number in range(len(table))]
        for split, table in manifest.splits.items()
    }


def manifest_of(directory: Path) -> Manifest:
    return read_manifest(LocalFiles(directory))


@pytest.mark.parametrize("kind", ["random", "zipf", "paired", "shuffle", "nested"])
def test_the_shards_hold_every_document_once(kind: str, tmp_path: Path) -> None:
    config = config_of(kind=kind)
    summary = synthesize(config, tmp_path / "out")
    make, lengths = document_maker(config), document_lengths(config, np.arange(200))
    seen = []
    for shards in shards_of(tmp_path / "out").values():
        for shard in shards:
            shard.check_blocks(np.arange(len(shard.index.blocks)))
            for document, name in enumerate(shard.document_ids(range(shard.documents))):
                number = int(name.removeprefix(f"{kind}/"))
                tokens = shard.read(document)
                assert np.array_equal(tokens, make(number, int(lengths[number])) + 5)
                assert shard.sentence_starts(document).tolist() == list(range(0, len(tokens), 8))
                seen.append(number)
    assert sorted(seen) == list(range(200))
    assert (summary.documents, summary.tokens, summary.vocab_size) == (200, int(lengths.sum()), 65)
    assert summary.splits["train"]["shards"] > 2
    assert 0 < summary.splits["validation"]["documents"] < 50
    facts = verify_corpus(tmp_path / "out", None)
    assert sum(facts.documents.values()) == 200
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["zipf", "nested"])
def test_two_processes_and_another_run_give_the_same_bytes(kind: str, tmp_path: Path) -> None:
    config = config_of(kind=kind)
    for name, processes in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(config, tmp_path / name, processes)
    files = files_of(tmp_path / "a")
    assert {"manifest.json", "tokenizer/tokenizer.json", "train/00002.tar", "validation/00000.idx"} < set(files)
    assert not [name for name in files if "work" in name]
    assert files_of(tmp_path / "b") == files
    assert files_of(tmp_path / "c") == files
    synthesize(config_of(kind=kind, seed=1), tmp_path / "d")
    assert files_of(tmp_path / "d")["train/00000.tar"] != files["train/00000.tar"]


@pytest.mark.parametrize(
    ("style", "special", "framed"),
    [
        ("bert", {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": None, "eos": None}, [2, 5, 22, 3]),
        ("roberta", {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": 64}, [0, 4, 21, 2]),
        (
            "gpt2",
            {"bos": 60, "eos": 60, "unk": 60, "pad": None, "cls": None, "sep": None, "mask": None},
            [0, 17],
        ),
    ],
)
def test_transformers_alone_loads_the_tokenizer(
    style: str, special: dict[str, int | None], framed: list[int], tmp_path: Path
) -> None:
    synthesize(config_of(kind="zipf", style=style), tmp_path / "out")
    manifest = manifest_of(tmp_path / "out")
    assert manifest.special_ids == special
    assert manifest.all_special_ids == sorted({number for number in special.values() if number is not None})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    assert len(tokenizer) == manifest.vocab_size == 60 + len(manifest.all_special_ids)
    assert tokenizer("w0 w17")["input_ids"] == framed
    assert ("token_type_ids" in tokenizer("w0 w17", "w1")) == (style == "bert")
    document = shards_of(tmp_path / "out")["train"][0].read(0).tolist()
    assert tokenizer(tokenizer.decode(document), add_special_tokens=False)["input_ids"] == document
    assert not set(document) & set(manifest.all_special_ids)


def test_the_tokenizer_names_brackets(tmp_path: Path) -> None:
    synthesize(config_of(kind="nested"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer")
    assert tokenizer("(0 (29 )29 )0")["input_ids"] == [2, 5, 34, 64, 35, 3]
    assert tokenizer.decode([5, 34, 64, 35]) == "(0 (29 )29 )0"
    pair = tokenizer("(0 )0", "(1 )1")
    assert pair["input_ids"] == [2, 5, 35, 3, 6, 36, 3]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_stats_tell_the_entropy_of_the_language(tmp_path: Path) -> None:
    config = config_of(kind="random", documents=2000, shards=ShardConfig(validation_share=0.5))
    synthesize(config, tmp_path / "out")
    facts = corpus_stats(tmp_path / "out")
    assert facts["validation_unigram_entropy"] == pytest.approx(np.log(60), abs=0.01)
    assert facts["sources"][0]["settings"]["length"] == 20
    assert any(line.startswith("  source random (synthetic): 2,000 records") for line in stats_lines(facts))


def test_sentences_and_words_may_be_left_out(tmp_path: Path) -> None:
    synthesize(config_of(shards=ShardConfig(sentences=False, words=False)), tmp_path / "out")
    manifest = manifest_of(tmp_path / "out")
    assert (manifest.has_sentences, manifest.has_words) == (False, False)
    verify_corpus(tmp_path / "out", None)


@pytest.mark.parametrize(("documents", "share", "splits"), [(1, 0.9, {"train"}), (9, 0.0, {"train"}), (2, 0.01, None)])
def test_splits_of_few_documents(documents: int, share: float, splits: set[str] | None) -> None:
    tasks = deal_numbers(config_of(documents=documents, shards=ShardConfig(validation_share=share)))
    assert {task.split for task in tasks} == (splits or {"train", "validation"})
    assert sum(len(task.documents) for task in tasks) == documents


def test_a_corpus_of_this_config_is_left_alone_and_another_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()  # an empty directory is no corpus
    assert not synthesize(config_of(), output).was_complete
    before = files_of(output)
    again = synthesize(config_of(), output)
    assert again.was_complete
    assert files_of(output) == before
    with pytest.raises(UserError, match=r"holds a corpus built with another config .* Choose another --output"):
        synthesize(config_of(seed=1), output)
    assert files_of(output) == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty and holds no corpus \(found thesis.tex\)"):
        synthesize(config_of(), tmp_path)
    with pytest.raises(UserError, match=r"thesis.tex is a file; a corpus is a directory"):
        synthesize(config_of(), tmp_path / "thesis.tex")
    with pytest.raises(UserError, match=r"--processes 0: at least 1 is needed"):
        synthesize(config_of(), tmp_path / "out", processes=0)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["corpus", "synthesize", str(SYNTHETIC), "--output", str(tmp_path / "out"), "--processes", "1"]
    assert main([*command, "--json", "--documents", "50", "--kind", "shuffle"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 50
    assert manifest_of(tmp_path / "out").sources[0]["name"] == "shuffle"
    assert main([*command, "--kind", "paired", "--vocab_size", "5"]) == 2
    assert "vocab_size: 5 is too small: a document of 128 tokens needs 64" in capsys.readouterr().err
