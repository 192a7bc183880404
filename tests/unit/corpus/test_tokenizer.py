"""Tokenizers: deterministic, loaded by `AutoTokenizer` as the stock class with the same ids, never marks for text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.config.corpus import TokenizerConfig
from pipeline.corpus.tokenizer import TokenizerFacts, encoder, make_tokenizer, read_tokenizer_facts
from tests.unit.corpus.writing import make_texts

TEXTS = make_texts(200)
PROBES = [
    *TEXTS[:3],
    "Unseen Zürich words, tokenization!\n\n  two  spaces 😀 日本",
    "a literal [MASK] and [SEP], <s> </s> <mask> <|endoftext|>",
    " leading space",
]
STYLES = {
    "bert": TokenizerConfig(kind="wordpiece", style="bert", vocab_size=150),
    "cased": TokenizerConfig(kind="wordpiece", style="bert", vocab_size=150, lowercase=False),
    "roberta": TokenizerConfig(kind="byte_bpe", style="roberta", vocab_size=400),
    "gpt2": TokenizerConfig(kind="byte_bpe", style="gpt2", vocab_size=400),
}
CLASSES = {"bert": "BertTokenizer", "cased": "BertTokenizer", "roberta": "RobertaTokenizer", "gpt2": "GPT2Tokenizer"}
SHARED = Path(__file__).resolve().parents[4] / "shared" / "corpora" / "tokenizers"


def build(config: TokenizerConfig, directory: Path, texts: list[str] = TEXTS) -> TokenizerFacts:
    return make_tokenizer(config, lambda: iter(texts), directory / "tokenizer", directory / "facts.json")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directories = {}
    for style, config in STYLES.items():
        directories[style] = tmp_path_factory.mktemp(style)
        build(config, directories[style])
    return directories


def auto_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory / "tokenizer")


@pytest.mark.parametrize("style", STYLES)
def test_auto_tokenizer_loads_the_stock_class_and_gives_the_same_ids(trained: dict[str, Path], style: str) -> None:
    stock = auto_tokenizer(trained[style])
    ours = encoder(trained[style] / "tokenizer")
    assert type(stock).__name__ == CLASSES[style]
    for probe in PROBES:
        expected = stock(probe, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours.encode(probe, add_special_tokens=False).ids == expected
    facts = read_tokenizer_facts(trained[style] / "facts.json")
    assert facts.vocab_size == len(stock) == STYLES[style].vocab_size
    assert facts.all_special_ids == sorted(stock.all_special_ids)


@pytest.mark.parametrize("style", STYLES)
def test_training_twice_gives_the_same_bytes(trained: dict[str, Path], style: str, tmp_path: Path) -> None:
    facts = build(STYLES[style], tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (trained[style] / "tokenizer" / name).read_bytes()
    assert facts == read_tokenizer_facts(trained[style] / "facts.json")


@pytest.mark.parametrize("style", STYLES)
def test_special_tokens_written_out_in_a_text_are_text(trained: dict[str, Path], style: str) -> None:
    facts = read_tokenizer_facts(trained[style] / "facts.json")
    marks = set(facts.all_special_ids) - ({facts.special_ids["unk"]} if style in ("bert", "cased") else set())
    ours = encoder(trained[style] / "tokenizer")
    for token in auto_tokenizer(trained[style]).all_special_tokens:
        ids = ours.encode(f"before {token} after {token}", add_special_tokens=False).ids
        assert len(ids) > 3
        assert not marks & set(ids)


def test_special_ids_of_the_styles(trained: dict[str, Path]) -> None:
    ids = {style: read_tokenizer_facts(trained[style] / "facts.json").special_ids for style in STYLES}
    assert ids["bert"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": None, "eos": None}
    assert ids["roberta"] == {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": 399}
    assert ids["gpt2"] == {"bos": 399, "eos": 399, "unk": 399, "pad": None, "cls": None, "sep": None, "mask": None}


def test_lowercase_is_a_choice(trained: dict[str, Path]) -> None:
    def tokens(style: str) -> list[str]:
        return encoder(trained[style] / "tokenizer").encode("The Café", add_special_tokens=False).tokens

    assert "".join(tokens("bert")).replace("##", "") == "thecafe"
    assert "".join(tokens("cased")).replace("##", "") == "TheCafé"


def test_the_mask_of_roberta_swallows_the_space_before_it(trained: dict[str, Path]) -> None:
    stock = auto_tokenizer(trained["roberta"])
    assert stock.convert_ids_to_tokens(stock("the <mask> sea", add_special_tokens=False).input_ids)[-2:] == [
        "<mask>",
        "Ġsea",
    ]


def test_a_large_alphabet_is_cut_to_the_frequent_characters(tmp_path: Path) -> None:
    texts = ["common words " * 50, "".join(chr(0x4E00 + number) for number in range(500))]
    first = build(TokenizerConfig(vocab_size=120), tmp_path / "a", texts)
    again = build(TokenizerConfig(vocab_size=120), tmp_path / "b", texts)
    assert first == again
    assert first.vocab_size <= 120
    vocabulary = json.loads((tmp_path / "a/tokenizer/tokenizer.json").read_text())["model"]["vocab"]
    assert "common" in vocabulary
    rare = sorted(piece for piece in vocabulary if piece >= "\u4e00")
    assert rare == [chr(0x4E00 + number) for number in range(40 - len(set("commonwords")))]


def test_the_texts_are_never_a_list(tmp_path: Path) -> None:
    def stream() -> Iterator[str]:
        yield from TEXTS

    facts = make_tokenizer(STYLES["bert"], stream, tmp_path / "tokenizer", tmp_path / "facts.json")
    assert facts.vocab_size == 150


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_tokenizer_can_be_taken_again(trained: dict[str, Path], style: str, tmp_path: Path) -> None:
    config = TokenizerConfig(path=str(trained[style] / "tokenizer"))
    facts = build(config, tmp_path)
    expected = encoder(trained[style] / "tokenizer")
    for probe in PROBES:
        assert encoder(tmp_path / "tokenizer").encode(probe).ids == expected.encode(probe).ids
    assert facts.special_ids == read_tokenizer_facts(trained[style] / "facts.json").special_ids
    assert str(tmp_path.parent) not in (tmp_path / "tokenizer/tokenizer_config.json").read_text()


def vocabulary_files(trained: dict[str, Path], style: str, directory: Path) -> Path:
    """The files that older tokenizers come as."""
    directory.mkdir(exist_ok=True)
    model = json.loads((trained[style] / "tokenizer/tokenizer.json").read_text())["model"]
    if style in ("bert", "cased"):
        pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
        (directory / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    else:
        (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "\n".join(" ".join(merge) for merge in model["merges"])
        (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return directory


@pytest.mark.parametrize("style", STYLES)
def test_vocabulary_files_give_the_same_tokenizer(trained: dict[str, Path], style: str, tmp_path: Path) -> None:
    folder = vocabulary_files(trained, style, tmp_path / "files")
    facts = build(TokenizerConfig(path=str(folder), lowercase=style != "cased"), tmp_path)
    assert facts == read_tokenizer_facts(trained[style] / "facts.json")


def test_an_accompanying_tokenizer_json_tells_whether_to_lowercase(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = vocabulary_files(trained, "cased", tmp_path / "files")
    shutil.copy(trained["cased"] / "tokenizer/tokenizer.json", folder)
    build(TokenizerConfig(path=str(folder), lowercase=True), tmp_path)
    assert (
        encoder(tmp_path / "tokenizer").encode("The", add_special_tokens=False).ids
        == encoder(trained["cased"] / "tokenizer").encode("The", add_special_tokens=False).ids
    )


def refused(config: TokenizerConfig, directory: Path, texts: list[str] = TEXTS) -> str:
    with pytest.raises(UserError) as caught:
        build(config, directory, texts)
    return str(caught.value)


def test_a_missing_vocabulary_file_is_named(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = vocabulary_files(trained, "gpt2", tmp_path / "files")
    (folder / "merges.txt").unlink()
    assert f"the vocabulary file {folder / 'merges.txt'} is missing" in refused(
        TokenizerConfig(path=str(folder)), tmp_path
    )


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    message = refused(TokenizerConfig(path=str(tmp_path)), tmp_path)
    assert "holds no vocabulary file" in message
    assert "found notes.md" in message


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refused(TokenizerConfig(path=str(tmp_path / "absent")), tmp_path)


def test_an_unknown_hub_name_is_refused(tmp_path: Path) -> None:
    message = refused(TokenizerConfig(path="nobody/no-such-tokenizer"), tmp_path)
    assert "`AutoTokenizer` cannot load 'nobody/no-such-tokenizer'" in message
    assert "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize(("style", "missing"), [("bert", "[MASK]"), ("roberta", "<pad>"), ("gpt2", "<|endoftext|>")])
def test_a_vocabulary_without_special_tokens_is_refused(
    trained: dict[str, Path], style: str, missing: str, tmp_path: Path
) -> None:
    folder = vocabulary_files(trained, style, tmp_path / "files")
    for path in folder.iterdir():
        path.write_text(path.read_text().replace(missing, "other"))
    assert f"lacks the special tokens {missing}" in refused(TokenizerConfig(path=str(folder)), tmp_path)


def test_a_tokenizer_without_marks_for_rows_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path / "files")
    message = refused(TokenizerConfig(path=str(tmp_path / "files")), tmp_path)
    assert "lacks needed special tokens: rows need `cls` and `sep`" in message
    assert "it has unk" in message


def test_texts_without_characters_are_refused(tmp_path: Path) -> None:
    assert "no characters to train a tokenizer on" in refused(STYLES["bert"], tmp_path, ["  ", "\n"])


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the published tokenizers in {SHARED.name}/ of a shared folder")
@pytest.mark.parametrize(("name", "ids"), [("bert-base-uncased", [7592, 2088]), ("gpt2", [31373, 995])])
def test_published_tokenizers(name: str, ids: list[int], tmp_path: Path) -> None:
    facts = build(TokenizerConfig(path=str(SHARED / name)), tmp_path)
    assert encoder(tmp_path / "tokenizer").encode("hello world", add_special_tokens=False).ids == ids
    assert facts.vocab_size == {"bert-base-uncased": 30522, "gpt2": 50257}[name]
    assert (
        type(auto_tokenizer(tmp_path)).__name__ == {"bert-base-uncased": "BertTokenizer", "gpt2": "GPT2Tokenizer"}[name]
    )
