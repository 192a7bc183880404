"""The corpus's tokenizer, trained or taken: saved so that `AutoTokenizer` loads the stock class with the same ids."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.base.errors import UserError
from pipeline.base.files import directory_made_whole, read_json, sha256_of_file, write_json_atomically
from pipeline.config.corpus import TokenizerConfig
from pipeline.corpus.symbols import STYLES, character_tokenizer, integer_tokenizer, kmer_tokenizer, unigram_tokenizer
from pipeline.corpus.vocabulary import train_byte_bpe, train_wordpiece

_ROBERTA_FIRST: Final = ("<s>", "<pad>", "</s>", "<unk>")
_ROBERTA_LAST: Final = ("<mask>",)
_GPT2_LAST: Final = ("<|endoftext|>",)
_SPECIAL_ATTRIBUTES: Final = {name: f"{name}_token_id" for name in ("pad", "cls", "sep", "mask", "bos", "eos", "unk")}


@dataclass(frozen=True)
class TokenizerFacts:
    """What the manifest and the workers need to know of the tokenizer."""

    fingerprint: str
    """sha256 of ``tokenizer.json``."""

    vocab_size: int
    """Largest id + 1."""

    special_ids: dict[str, int | None]
    """pad, cls, sep, mask, bos, eos, unk."""

    all_special_ids: list[int]
    """Every id that is no text, sorted."""

    overlapping_kmer: int = 0
    """Letters of the overlapping k-mers that texts are written out in before they are encoded; 0: not at all."""


def make_tokenizer(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]], directory: Path, facts_path: Path
) -> TokenizerFacts:
    """Train or take the tokenizer and save it.

    Args:
        texts: the training texts, each call from the start.
        directory: where the Hugging Face files go; replaced if it exists.
        facts_path: where the facts go, last.

    Raises:
        UserError: no such tokenizer, a vocabulary file is missing, or special tokens are missing that rows need.
    """
    tokenizer = load_tokenizer(config) if config.path else train_tokenizer(config, texts)
    where = f"The tokenizer {config.path!r}" if config.path else "The trained tokenizer"
    facts = save_tokenizer(tokenizer, directory, where)
    write_json_atomically(facts_path, vars(facts))
    return facts


def save_tokenizer(tokenizer: Any, directory: Path, where: str) -> TokenizerFacts:
    """Save a tokenizer of transformers as a corpus keeps it.

    Args:
        directory: where the Hugging Face files go; replaced if it exists.
        where: what messages call it.

    Raises:
        UserError: special tokens are missing that rows need.
    """
    special_ids = {name: getattr(tokenizer, attribute) for name, attribute in _SPECIAL_ATTRIBUTES.items()}
    _check_special_ids(where, special_ids)
    shutil.rmtree(directory, ignore_errors=True)
    with directory_made_whole(directory) as temporary:
        tokenizer.save_pretrained(temporary)
        _forget_this_machine(temporary / "tokenizer_config.json")
    vocabulary = tokenizer.get_vocab()
    return TokenizerFacts(
        fingerprint=sha256_of_file(directory / "tokenizer.json"),
        vocab_size=max(vocabulary.values()) + 1,
        special_ids=special_ids,
        all_special_ids=sorted(set(tokenizer.all_special_ids)),
        overlapping_kmer=int(tokenizer.init_kwargs.get("overlapping_kmer", 0)),
    )


def read_tokenizer_facts(path: Path) -> TokenizerFacts:
    """What :func:`make_tokenizer` wrote."""
    return TokenizerFacts(**read_json(path, "tokenizer facts"))


def encoder(directory: Path) -> Any:
    """The fast backend, made so that special tokens written out in a text are text.

    Without it ``[MASK]`` or ``<|endoftext|>`` in a document would become the model's own marks.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend


def train_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> Any:
    """A stock Hugging Face tokenizer with a vocabulary trained on ``texts``.

    Raises:
        UserError: the texts hold nothing to train on.
    """
    if config.kind == "unigram":
        return unigram_tokenizer(texts, config.vocab_size, STYLES[config.style])
    if config.kind == "character":
        return character_tokenizer(texts, config.vocab_size, config.min_count, STYLES[config.style])
    if config.kind == "kmer":
        return kmer_tokenizer(texts, config, STYLES[config.style])
    if config.kind == "integers":
        if config.num_integers is None:
            raise ValueError("num_integers must be known here: the stage counts them")
        return integer_tokenizer(config.num_integers, STYLES[config.style])
    if config.style == "bert":
        stock = _bert({}, config.lowercase).backend_tokenizer
        return _bert(
            train_wordpiece(texts, config.vocab_size, config.lowercase, stock.normalizer, stock.pre_tokenizer),
            config.lowercase,
        )
    if config.style == "roberta":
        return _roberta(*train_byte_bpe(texts, config.vocab_size, _ROBERTA_FIRST, _ROBERTA_LAST))
    return _gpt2(*train_byte_bpe(texts, config.vocab_size, (), _GPT2_LAST))


def load_tokenizer(config: TokenizerConfig) -> Any:
    """The tokenizer ``config.path`` names: a folder in one of four forms, or a hub name.

    A folder may hold a saved Hugging Face tokenizer (``tokenizer_config.json``), ``vocab.json`` and ``merges.txt``
    (byte-level BPE), ``vocab.txt`` (WordPiece; an accompanying ``tokenizer.json`` tells whether it lower-cases, else
    the config).
    """
    path = str(config.path)
    folder = Path(path)
    if not folder.is_dir():
        if folder.is_absolute() or path.startswith(".") or folder.exists():
            raise UserError(
                f"tokenizer.path: {path!r} is not a folder. Give a folder with tokenizer files, a hub name, or leave "
                "`path` out to train a tokenizer."
            )
        return _from_auto_tokenizer(path)
    if (folder / "tokenizer_config.json").is_file():
        return _from_auto_tokenizer(path)
    if (folder / "vocab.txt").is_file():
        return _from_wordpiece_files(folder, config.lowercase)
    if (folder / "vocab.json").is_file() or (folder / "merges.txt").is_file():
        return _from_bpe_files(folder)
    raise UserError(
        f"tokenizer.path: {path!r} holds no vocabulary file: expected tokenizer_config.json with tokenizer.json, "
        f"vocab.txt, or vocab.json with merges.txt; found {', '.join(sorted(os.listdir(folder))) or 'nothing'}."
    )


def _from_auto_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # OSError, ValueError, KeyError, hub errors: all mean that the name or folder is wrong
        detail = " ".join(str(error).split())
        raise UserError(
            f"tokenizer.path: `AutoTokenizer` cannot load {path!r}: {detail} Check the folder or the hub name, and the "
            "network or HF_HUB_OFFLINE."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer.path: {path!r} has no fast tokenizer (tokenizer.json), which offsets need.")
    return tokenizer


def _from_wordpiece_files(folder: Path, lowercase: bool) -> Any:
    lines = _text(folder / "vocab.txt").split("\n")
    vocabulary = {line: number for number, line in enumerate(lines) if line or number < len(lines) - 1}
    _check_vocabulary(folder / "vocab.txt", vocabulary, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
    if (folder / "tokenizer.json").is_file():
        normalizer = read_json(folder / "tokenizer.json", "tokenizer").get("normalizer") or {}
        lowercase = bool(normalizer.get("lowercase", lowercase))
    return _bert(vocabulary, lowercase)


def _from_bpe_files(folder: Path) -> Any:
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise UserError(
                f"tokenizer.path: the vocabulary file {folder / name} is missing; byte-level BPE needs vocab.json and "
                "merges.txt."
            )
    vocabulary = read_json(folder / "vocab.json", "vocabulary file")
    merges = []
    for line in _text(folder / "merges.txt").split("\n"):
        if line and not line.startswith("#version"):
            left, _, right = line.rstrip("\r").partition(" ")
            merges.append((left, right))
    if "<s>" in vocabulary and "</s>" in vocabulary:
        _check_vocabulary(folder / "vocab.json", vocabulary, (*_ROBERTA_FIRST, *_ROBERTA_LAST))
        return _roberta(vocabulary, merges)
    _check_vocabulary(folder / "vocab.json", vocabulary, _GPT2_LAST)
    return _gpt2(vocabulary, merges)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"tokenizer.path: {path} is not UTF-8 text ({error}).") from None


def _check_vocabulary(path: Path, vocabulary: dict[str, int], needed: tuple[str, ...]) -> None:
    missing = [token for token in needed if token not in vocabulary]
    if missing:
        raise UserError(
            f"tokenizer.path: the vocabulary {path} lacks the special tokens {', '.join(missing)}. Add them, or save "
            "the tokenizer with `save_pretrained` and give that folder."
        )


def _check_special_ids(where: str, special_ids: dict[str, int | None]) -> None:
    if (special_ids["cls"] is None or special_ids["sep"] is None) and special_ids["eos"] is None:
        has = ", ".join(name for name, number in special_ids.items() if number is not None) or "none"
        raise UserError(
            f"{where} lacks needed special tokens: rows need `cls` and `sep` (BERT, RoBERTa) or `eos` (GPT-2); it has "
            f"{has}. Set them in its tokenizer_config.json, or train a tokenizer."
        )


def _forget_this_machine(path: Path) -> None:
    """Take names of folders out of a saved tokenizer config: equal corpora must have equal files."""
    value = json.loads(path.read_text(encoding="utf-8"))
    for name in ("name_or_path", "tokenizer_file", "vocab_file", "merges_file", "is_local", "local_files_only"):
        value.pop(name, None)
    if value.get("tokenizer_class") == "TokenizersBackend":  # a name of transformers 5; all versions know the older one
        value["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json_atomically(path, value)


def _bert(vocabulary: dict[str, int], lowercase: bool) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(vocab=vocabulary or None, do_lower_case=lowercase)


def _roberta(vocabulary: dict[str, int], merges: Any) -> Any:
    from transformers import AddedToken, RobertaTokenizer

    # As in roberta-base: the mask swallows the space before it, as the word it stands for would.
    mask: Any = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    return RobertaTokenizer(vocab=vocabulary, merges=merges, mask_token=mask)


def _gpt2(vocabulary: dict[str, int], merges: Any) -> Any:
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(vocab=vocabulary, merges=merges)
