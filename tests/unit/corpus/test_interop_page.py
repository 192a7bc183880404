"""The commands and the code of docs/interoperability.md run, and give the tokens that our own reader gives."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset

from pipeline.cli import main
from tests.corpora import random_lengths, write_corpus
from tests.unit.corpus.foreign_files import (
    documents_of,
    in_sentences,
    random_documents,
    write_pair,
    write_tokenizer,
)

PAGE = (Path(__file__).parents[3] / "docs/interoperability.md").read_text(encoding="utf-8")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    facts = write_tokenizer(Path("tokenizers/mine"), "gpt2")
    documents = random_documents(400, special=facts.all_special_ids, vocab_size=facts.vocab_size)
    write_pair(Path("tokens/web_text_document"), [[document] for document in documents])
    for split in ("train", "validation"):
        sentences = [in_sentences(document, number) for number, document in enumerate(documents)]
        write_pair(Path("tokens/pairs") / split, sentences)
    rows = {"id": [f"é {number}" for number in range(400)], "input_ids": documents}
    datasets.Dataset.from_dict(rows).save_to_disk("tokens/saved")
    Path("tokens/parquet").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"input_ids": documents}), "tokens/parquet/a.parquet")
    commands = re.findall(r"^    pretrain (.*)$", PAGE, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        capsys.readouterr()
        # Small shards, so that the page's braces name several of them.
        small = ["--shard-tokens", "5000", "--block-tokens", "500"] if command.startswith("corpus import") else []
        assert main([*shlex.split(command), *small]) == 0, command
        if "--json" in command:
            assert json.loads(capsys.readouterr().out)["documents"] == 400
    with_webdataset, with_datasets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert sum(bool(line) for line in with_webdataset.splitlines()) == 5
    assert main(["corpus", "verify", "corpora/web"]) == 0
    assert main(["corpus", "stats", "corpora/web"]) == 0
    capsys.readouterr()
    with np.printoptions(threshold=10_000, linewidth=10_000):
        exec(with_webdataset, {})
        assert len(list(Path("corpora/web/train").glob("*.tar"))) == 3
        web = documents_of(Path("corpora/web"))
        assert capsys.readouterr().out == "".join(f"{name} {np.array(ids)}\n" for name, ids in web.items())
    exec(with_datasets, {})
    first, tokens = next(iter(web.items()))
    assert capsys.readouterr().out == f"{first} {tokens}\n"


@pytest.mark.parametrize(("vocab_size", "sentences"), [(1000, True), (70_000, False)])
def test_every_document_through_webdataset(tmp_path: Path, vocab_size: int, sentences: bool) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_lengths(1, 3, 60), vocab_size=vocab_size, sentences=sentences)
    for split in ("train", "validation"):
        urls = sorted(str(path) for path in (corpus.directory / split).glob("*.tar"))
        found = {}
        for block in webdataset.WebDataset(urls, shardshuffle=False).decode():
            assert block["tokens.npy"].dtype == corpus.manifest.dtype
            borders = block["documents.npy"]
            for name, begin, end in zip(block["ids.json"], borders[:-1], borders[1:], strict=True):
                found[name] = block["tokens.npy"][begin:end].tolist()
        assert len(urls) == len(corpus.documents[split])
        assert list(found.items()) == list(documents_of(corpus.directory, split).items())
        written = [document for shard in corpus.documents[split] for document in shard]
        assert found == {document.name: document.tokens.tolist() for document in written}
