"""The typed config of a corpus: where text comes from, how it is cleaned, tokenised and cut into shards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SourceKind = Literal["text", "jsonl", "parquet", "datasets", "fasta", "integers"]
TokenizerKind = Literal["wordpiece", "byte_bpe", "unigram", "character", "kmer", "integers"]
MAX_INTEGERS = 2**22
"""Ids that a corpus of integers may have: the embedding of more is larger than the rest of any model."""


@dataclass(frozen=True)
class SourceConfig:
    """One source of documents."""

    name: str = ""
    """Short name: the first part of every document id of this source. Required, unique."""

    kind: SourceKind = "text"
    """`text`: files of text, one document a file; `jsonl`: one JSON object a line (.jsonl, .jsonl.gz, .jsonl.zst);
    `parquet`; `datasets`: anything `datasets.load_dataset` takes, a hub name or a local path; `fasta`: DNA, RNA or
    protein, one document a record (.fasta, .fa, .fna, .ffn, .faa, each also .gz, .zst); `integers`: documents of
    integers from 0 (speech units, music), JSON lines with a list in the field `ids`, .npy and .npz (a document an
    array of one dimension, or a row of one of two)."""

    path: str = ""
    """Folder or file, or the name given to `datasets.load_dataset`. Required."""

    glob: str | None = None
    """Pattern of the files under a folder. Default: every file of the kind's usual endings, subfolders included."""

    text_field: str = "text"
    """Field or column that holds the text. integers: always `ids`."""

    id_field: str | None = None
    """Field or column that names the document. Default: file and line (row) number."""

    subset: str | None = None
    """datasets: configuration name, e.g. `20220301.en`."""

    split: str = "train"
    """datasets: split."""

    max_symbols: int = 100_000
    """fasta, integers: longer sequences (chromosomes) are cut into documents of at most this many letters or
    integers."""

    uppercase: bool = True
    """fasta: make lower-case (soft-masked) letters upper case."""

    language: str | None = None
    """Language of the documents, e.g. `en`: at every source, or at none. Languages share the tokenizer's training
    documents by `tokenizer.language_exponent` and are counted in the manifest."""


@dataclass(frozen=True)
class CleaningConfig:
    """What happens to a document before it is tokenised."""

    normalize_unicode: bool = True
    """Unicode NFC, control characters removed, runs of white space reduced; paragraph breaks stay."""

    min_characters: int = 1
    """Shorter documents are dropped (counted as `too_short`)."""

    deduplicate: bool = True
    """Drop documents whose cleaned text occurred before, exactly (counted as `duplicate`)."""

    max_bad_share: float = 0.001
    """Share of unreadable or empty documents over which the build stops."""


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer to train, or one to take."""

    kind: TokenizerKind = "wordpiece"
    """`wordpiece` (BERT), `byte_bpe` (RoBERTa, GPT-2), `unigram` (SentencePiece's, cased), `character` (one id a
    character), `kmer` (one id for `kmer` letters), `integers` (one id an integer, behind the special tokens; for
    sources of that kind); only read when one is trained."""

    path: str | None = None
    """Existing tokenizer: a folder or hub name for `AutoTokenizer`, or a vocabulary file folder. Default: train one."""

    vocab_size: int = 30522
    """Ids of the trained tokenizer at most, special tokens included."""

    min_count: int = 1
    """character: characters seen less often in the training documents are unknown; kmer: observed k-mers likewise."""

    kmer: int = 6
    """kmer: letters an id."""

    kmer_overlap: bool = True
    """kmer: an id begins at every letter (DNABERT), or at every `kmer`-th (up to `kmer - 1` letters at the end of a
    document are left out)."""

    kmer_letters: str = "ACGT"
    """kmer: the vocabulary is every k-mer of these letters; one with another letter (N) is unknown. Empty: the k-mers
    observed in the training documents, the most frequent ones up to `vocab_size` (protein)."""

    lowercase: bool = True
    """wordpiece: lower-case and strip accents (bert-base-uncased)."""

    num_integers: int | None = None
    """integers: how many there are; all lie below it. Default: the largest one found + 1."""

    style: Literal["bert", "roberta", "gpt2"] = "bert"
    """Special tokens of the trained tokenizer: `[CLS] [SEP] ...`, `<s> </s> ...`, or `<|endoftext|>`. `wordpiece`
    takes `bert`, `byte_bpe` takes `roberta` or `gpt2`, the other kinds take any."""

    training_documents: int = 1_000_000
    """Documents the tokenizer is trained on, at most: an evenly spread, deterministic choice."""

    language_exponent: float = 0.7
    """Where sources have a language: each one's share of the bytes the tokenizer is trained on is its bytes^exponent,
    normalised. Below 1 lifts small languages (multilingual BERT: 0.7), whose documents may count several times."""


@dataclass(frozen=True)
class ShardConfig:
    """How documents become shards."""

    tokens: int = 8_000_000
    """A shard closes at this many tokens, or"""

    documents: int = 65_536
    """at this many documents."""

    block_tokens: int = 500_000
    """A record of a shard holds whole documents up to about this many tokens."""

    validation_share: float = 0.005
    """Share of the documents, chosen by a hash of their id, that goes to the validation split."""

    sentences: bool = True
    """Split sentences and keep their offsets (needed by sentence-pair objectives)."""

    words: bool = True
    """Keep which tokens begin a word, one bit a token (needed by whole-word and span masking)."""

    by_language: bool = False
    """Make a corpus directory for every language of the sources, OUTPUT/en and so on, with one tokenizer, and
    OUTPUT/mixture.yaml, the part of a run's config that trains on them with `tokenizer.language_exponent`."""


@dataclass(frozen=True)
class CorpusConfig:
    """A corpus to build with `pretrain corpus build`."""

    sources: list[SourceConfig] = field(default_factory=list)
    """Where the text comes from; at least one."""

    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """Normalisation, filters, de-duplication."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Vocabulary."""

    shards: ShardConfig = field(default_factory=ShardConfig)
    """Shard sizes and the validation split."""

    tasks: int = 0
    """Units of work, at most. 0: about 1,024, of 4 to 256 MiB each (large plain JSON-lines files and tables are split).
    Never taken from the number of processes; no shard depends on it."""

    seed: int = 0
    """Deals documents to splits and shards."""
