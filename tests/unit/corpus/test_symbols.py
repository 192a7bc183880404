"""Tokenizers without a stock class: the same bytes again, the same ids in a process that has transformers alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import UserError
from pipeline.config.corpus import TokenizerConfig
from pipeline.corpus.encoding import encode_texts
from pipeline.corpus.symbols import _in_fixed_order
from pipeline.corpus.tokenizer import TokenizerFacts, encoder, make_tokenizer, read_tokenizer_facts
from tests.unit.corpus.writing import make_texts

TEXTS = make_texts(60)
PROBES = [
    *TEXTS[:2],
    "Unseen Zürich words, tokenization!\n\n  two  spaces 😀😀 日本",
    "a literal [MASK] and [SEP], <s> </s> <mask> <|endoftext|>",
    " leading space ﬁ",
]
KINDS = {
    f"{kind}-{style}": TokenizerConfig(kind=kind, style=style, vocab_size=150, min_count=2)  # type: ignore[arg-type]
    for kind in ("unigram", "character")
    for style in ("bert", "roberta", "gpt2")
}
STRANGER = """
import json, sys
from transformers import AutoTokenizer
folders, probes = json.loads(sys.stdin.read())
found = []
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encode = lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    found.append([encode(probe) for probe in probes])
assert not any(name.startswith("pipeline") for name in sys.modules)
print(json.dumps(found))
"""


def build(config: TokenizerConfig, directory: Path, texts: list[str] = TEXTS) -> TokenizerFacts:
    return make_tokenizer(config, lambda: iter(texts), directory / "tokenizer", directory / "facts.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directories = {}
    for name, config in KINDS.items():
        directories[name] = tmp_path_factory.mktemp(name)
        build(config, directories[name])
    return directories


def auto_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory / "tokenizer")


@pytest.mark.parametrize("name", KINDS)
def test_auto_tokenizer_gives_the_same_ids(trained: dict[str, Path], name: str) -> None:
    stock, ours = auto_tokenizer(trained[name]), encoder(trained[name] / "tokenizer")
    facts = read_tokenizer_facts(trained[name] / "facts.json")
    for probe in PROBES:
        ids = ours.encode(probe, add_special_tokens=False).ids
        assert ids == stock(probe, add_special_tokens=False, split_special_tokens=True).input_ids
        assert not set(ids) & (set(facts.all_special_ids) - {facts.special_ids["unk"]})
    assert facts.vocab_size == len(stock) <= 150
    assert facts.all_special_ids == sorted(stock.all_special_ids)


def test_a_stranger_with_a_model_of_any_family_beside_it_gets_the_same_ids(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    folders = []
    for name, family in product(("unigram-bert", "character-gpt2"), ("bert", "roberta", "gpt2")):
        shutil.copytree(trained[name] / "tokenizer", tmp_path / name / family)
        (tmp_path / name / family / "config.json").write_text(json.dumps({"model_type": family}))
        folders.append((name, str(tmp_path / name / family)))
    request = json.dumps([[folder for _, folder in folders], PROBES])
    found = subprocess.run(
        [sys.executable, "-c", STRANGER], input=request, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    for (name, _), ids in zip(folders, json.loads(found.stdout), strict=True):
        ours = encoder(trained[name] / "tokenizer")
        assert ids == [ours.encode(probe, add_special_tokens=False).ids for probe in PROBES]


@pytest.mark.parametrize("name", KINDS)
def test_training_twice_gives_the_same_bytes(trained: dict[str, Path], name: str, tmp_path: Path) -> None:
    facts = build(KINDS[name], tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / file).read_bytes() == (trained[name] / "tokenizer" / file).read_bytes()
    assert facts == read_tokenizer_facts(trained[name] / "facts.json")


def test_special_ids_of_the_styles(trained: dict[str, Path]) -> None:
    ids = {name: read_tokenizer_facts(trained[name] / "facts.json").special_ids for name in KINDS}
    assert ids["unigram-bert"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": None, "eos": None}
    assert ids["unigram-roberta"] == {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": 149}
    last = read_tokenizer_facts(trained["character-gpt2"] / "facts.json").vocab_size - 1
    expected = {"unk": 0, "bos": last, "eos": last, "pad": None, "cls": None, "sep": None, "mask": None}
    assert ids["character-gpt2"] == expected


@pytest.mark.parametrize(
    ("style", "framed"),
    [("bert", "[CLS] x [SEP] y [SEP]"), ("roberta", "<s> x </s> </s> y </s>"), ("gpt2", "x y")],
)
def test_texts_are_framed_as_by_the_stock_class(trained: dict[str, Path], style: str, framed: str) -> None:
    stock = auto_tokenizer(trained[f"character-{style}"])
    encoded = stock("e", "a")
    tokens = stock.convert_ids_to_tokens(encoded.input_ids)
    assert tokens == framed.replace("x", "e").replace("y", "a").split()
    assert encoded.get("token_type_ids") == ([0, 0, 0, 1, 1] if style == "bert" else None)


def test_unigram_texts_come_back(trained: dict[str, Path]) -> None:
    stock = auto_tokenizer(trained["unigram-roberta"])
    text = TEXTS[0].replace("\n\n", " ")
    assert stock.decode(stock(TEXTS[0], add_special_tokens=False).input_ids) == text
    pieces = stock.convert_ids_to_tokens(stock("the whale", add_special_tokens=False).input_ids)
    assert "".join(pieces) == "\u2581the\u2581whale"
    assert len(pieces) < len("the whale")


def test_left_over_characters_of_the_trainer_are_put_in_order() -> None:
    trained = [("ab", -1.0), ("a", -2.0000000000001), ("cd", -9.0), ("b", -9.0), ("z", -8.9999), ("d", -8.9998)]
    again = [("ab", -1.0), ("a", -2.0), ("cd", -9.0), ("d", -9.0), ("b", -8.9999), ("z", -8.9998)]
    ordered = [("ab", -1.0), ("a", -2.0), ("b", -8.9998), ("d", -8.9999), ("cd", -9.0), ("z", -9.0)]
    assert _in_fixed_order(trained) == _in_fixed_order(again) == ordered


def test_rare_characters_are_unknown(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="character", vocab_size=100, min_count=2)
    facts = build(config, tmp_path, ["aabbc", "aX X"])
    backend = encoder(tmp_path / "tokenizer")
    assert facts.vocab_size == 5 + 3
    assert backend.encode("abXc?", add_special_tokens=False).tokens == ["a", "b", "X", "[UNK]", "[UNK]"]
    build(replace(config, vocab_size=7), tmp_path / "small", ["aaabbc", "aX X"])
    small = encoder(tmp_path / "small/tokenizer")
    assert small.encode("aXb", add_special_tokens=False).tokens == ["a", "X", "[UNK]"]  # X before b in the alphabet


@pytest.mark.parametrize(
    ("texts", "probe", "starts"),
    [(["a bc d"], "ab c", [True, False, True, False]), (["ACGT"], "ACGT", [True] * 4)],
)
def test_words_of_characters(tmp_path: Path, texts: list[str], probe: str, starts: list[bool]) -> None:
    build(TokenizerConfig(kind="character", vocab_size=100), tmp_path, texts)
    [encoded] = encode_texts(encoder(tmp_path / "tokenizer"), [probe], 100, sentences=True, words=True)
    np.testing.assert_array_equal(encoded.word_starts, starts)


@pytest.mark.parametrize(("kind", "texts"), [("unigram", [" "]), ("character", ["a"])])
def test_texts_without_characters_are_refused(kind: Any, texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no characters to train a tokenizer on"):
        build(TokenizerConfig(kind=kind, min_count=2), tmp_path, texts)
