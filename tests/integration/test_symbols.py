"""A corpus of every new kind through the commands: built, verified, described, trained on, exported, loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from tests.runs import TINY_RUN
from tests.unit.corpus.test_fasta import genome
from tests.unit.corpus.test_integers import units
from tests.unit.corpus.writing import make_texts, write_jsonl

CASES = {
    "unigram": ("jsonl", "{kind: unigram, style: bert, vocab_size: 150}", "bert", Path("a.jsonl")),
    "character": ("jsonl", "{kind: character, style: gpt2}", "gpt2", Path("a.jsonl")),
    "kmer": ("fasta", "{kind: kmer, kmer: 3, style: bert}", "bert", Path("genome")),
    "integers": ("integers", "{kind: integers, style: roberta}", "roberta", Path("units.jsonl")),
}
PROBES = {
    "unigram": "Text 3. The whale.",
    "character": "Text 3. The whale.",
    "kmer": "ACG CGT GTN",
    "integers": "7 49 0",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sources")
    write_jsonl(directory / "a.jsonl", [{"text": text} for text in make_texts(60)])
    write_jsonl(directory / "units.jsonl", [{"ids": values} for values in units(60)])
    genome(directory / "genome", num_records=60)
    return directory


@pytest.mark.parametrize("name", CASES)
def test_from_source_to_export(name: str, sources: Path, tmp_path: Path, capsys: Any) -> None:
    from transformers import AutoTokenizer

    kind, tokenizer, family, path = CASES[name]
    (tmp_path / "corpus.yaml").write_text(
        f"sources: [{{name: s, kind: {kind}, path: {sources / path}}}]\n"
        f"tokenizer: {tokenizer}\nshards: {{validation_share: 0.2}}\n"
    )
    corpus, run = str(tmp_path / "corpus"), tmp_path / "run"
    assert main(["corpus", "build", str(tmp_path / "corpus.yaml"), "--output", corpus, "--processes", "1"]) == 0
    assert main(["corpus", "verify", corpus]) == 0
    capsys.readouterr()
    assert main(["corpus", "stats", corpus, "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert sum(split["documents"] for split in stats["splits"].values()) >= 40
    text = f"run_directory: {run}\n" + TINY_RUN.replace("data: {", f"data: {{corpus: {corpus}, ")
    text = text.replace("model: {", f"model: {{family: {family}, ").replace("steps: 20", "steps: 5")
    text += f"objective: {{name: {'clm' if family == 'gpt2' else 'mlm'}}}\n"
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    assert main(["export", str(run), "--output", str(tmp_path / "hf")]) == 0
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (Path(corpus) / "tokenizer", tmp_path / "hf"))
    probe = PROBES[name]
    ids = after(probe).input_ids
    assert ids == before(probe).input_ids
    assert len(set(ids)) >= 3
    assert max(ids) < stats["vocab_size"]
