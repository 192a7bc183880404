"""`manifest.json`: what a corpus is. Shards are columns of numbers, so 100,000 of them load in a blink.

Letters: N shards of a split.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.files import write_json_atomically
from pipeline.shards.files import CorpusFiles
from pipeline.shards.layout import shard_name, token_dtype
from pipeline.shards.writer import ShardFacts

FORMAT_NAME: Final = "pretrain-corpus"
FORMAT_VERSION: Final = 2
MANIFEST_NAME: Final = "manifest.json"
TOKENIZER_NAME: Final = "tokenizer/tokenizer.json"
SPECIAL_TOKENS: Final = ("pad", "cls", "sep", "mask", "bos", "eos", "unk")
_SPLIT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, eq=False)
class ShardTable:
    """The shards of a split, one column a fact; shard ``i`` is called ``f"{i:05d}"``."""

    documents: NDArray[np.int64]
    """Documents of every shard, (N,)."""

    tokens: NDArray[np.int64]
    """Tokens of every shard, (N,)."""

    bytes: NDArray[np.int64]
    """Size of every tar, (N,)."""

    sha256: str
    """Hex digests of the tars, joined: 64 characters a shard."""

    index_sha256: str
    """Hex digests of the indexes, joined."""

    @classmethod
    def from_facts(cls, facts: Sequence[ShardFacts]) -> Self:
        """The table of a split from what its writers returned, sorted by name.

        Raises:
            ValueError: the names are not one split's numbers from 0.
        """
        facts = sorted(facts, key=lambda shard: (len(shard.name), shard.name))
        split = facts[0].name.rpartition("/")[0] if facts else ""
        if [shard.name for shard in facts] != [shard_name(split, number) for number in range(len(facts))]:
            raise ValueError(
                f"shards must be numbered from 0 in one split; got {[shard.name for shard in facts][:8]} ..."
            )
        return cls(
            documents=np.array([shard.documents for shard in facts], np.int64),
            tokens=np.array([shard.tokens for shard in facts], np.int64),
            bytes=np.array([shard.bytes for shard in facts], np.int64),
            sha256="".join(shard.sha256 for shard in facts),
            index_sha256="".join(shard.index_sha256 for shard in facts),
        )

    def __len__(self) -> int:
        return len(self.documents)

    def sha256_of(self, number: int) -> str:
        """Hex digest of one tar."""
        return self.sha256[64 * number : 64 * (number + 1)]

    def index_sha256_of(self, number: int) -> str:
        """Hex digest of one index."""
        return self.index_sha256[64 * number : 64 * (number + 1)]


@dataclass(frozen=True, eq=False)
class Manifest:
    """A corpus: tokenizer, shards of every split, where they came from, what was dropped."""

    tokenizer_fingerprint: str
    """sha256 of ``tokenizer/tokenizer.json``."""

    vocab_size: int
    """Ids of the tokenizer, added tokens included."""

    special_ids: Mapping[str, int | None]
    """Ids of pad, cls, sep, mask, bos, eos, unk; None where the tokenizer has none."""

    all_special_ids: Sequence[int]
    """Every id that is no text."""

    splits: Mapping[str, ShardTable]
    """``train``, ``validation``."""

    has_sentences: bool = False
    """Whether the shards know where sentences begin."""

    has_words: bool = False
    """Whether they know which tokens begin a word."""

    sources: Sequence[Mapping[str, Any]] = ()
    """Provenance, free form."""

    drops: Mapping[str, int] = field(default_factory=dict)
    """Documents dropped, by reason."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further facts, e.g. the unigram entropy."""

    format_version: int = FORMAT_VERSION
    """Version of the corpus directory's layout."""

    @property
    def dtype(self) -> str:
        """``"uint16"`` or ``"uint32"``: the smallest that holds ``vocab_size`` ids."""
        return token_dtype(self.vocab_size).name

    @property
    def fingerprint(self) -> str:
        """sha256 over all that a batch depends on: every fact here but provenance (sources, drops, extra)."""
        facts = {
            "format": FORMAT_NAME,
            "format_version": self.format_version,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "vocab_size": self.vocab_size,
            "special_ids": {name: self.special_ids.get(name) for name in SPECIAL_TOKENS},
            "all_special_ids": list(self.all_special_ids),
            "has_sentences": self.has_sentences,
            "has_words": self.has_words,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for split in sorted(self.splits):
            table = self.splits[split]
            for part in (f" {split} ", table.sha256, " ", table.index_sha256, " "):
                digest.update(part.encode())
            for column in (table.documents, table.tokens, table.bytes):
                digest.update(np.ascontiguousarray(column, "<i8").data)
        return digest.hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically; it is written last, so a directory with one is complete.

    Raises:
        UserError: the manifest would not read back (see :func:`read_manifest`).
    """
    path = directory / MANIFEST_NAME
    value = {
        "format": FORMAT_NAME,
        "format_version": manifest.format_version,
        "fingerprint": manifest.fingerprint,
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
        "vocab_size": manifest.vocab_size,
        "dtype": manifest.dtype,
        "special_ids": {name: manifest.special_ids.get(name) for name in SPECIAL_TOKENS},
        "all_special_ids": list(manifest.all_special_ids),
        "has_sentences": manifest.has_sentences,
        "has_words": manifest.has_words,
        "splits": {
            split: {
                "documents": table.documents.tolist(),
                "tokens": table.tokens.tolist(),
                "bytes": table.bytes.tolist(),
                "sha256": table.sha256,
                "index_sha256": table.index_sha256,
            }
            for split, table in manifest.splits.items()
        },
        "sources": [dict(source) for source in manifest.sources],
        "drops": dict(manifest.drops),
        "extra": dict(manifest.extra),
    }
    _parse(value, str(path))
    write_json_atomically(path, value)


def read_manifest(files: CorpusFiles) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        UserError: no such corpus, not a manifest, a newer format, columns that do not fit together, a split name that
            would leave the directory, or a fingerprint that is not that of the shards listed.
    """
    path = files.describe(MANIFEST_NAME)
    try:
        content = files.read(MANIFEST_NAME)
    except FileNotFoundError:
        raise UserError(
            f"No corpus at {files.location}: {MANIFEST_NAME} does not exist there. "
            "Give the directory that `pretrain corpus build` wrote (of corpora by language, one of its folders); if "
            "that build was interrupted, run it again."
        ) from None
    try:
        value = orjson.loads(content)
    except ValueError as error:
        raise UserError(
            f"corpus manifest: {path} is not valid JSON ({error}). It begins with {content[:20]!r}. Give the folder of "
            "a corpus (a web server may answer with a page of its own), or restore the file."
        ) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT_NAME:
        raise UserError(f"{path} is not a corpus manifest: `format` is not {FORMAT_NAME!r}. Build the corpus again.")
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}; this program reads version {FORMAT_VERSION}. "
            "Update pretrain, or build the corpus again with this version."
        )
    manifest = _parse(value, path)
    if value.get("fingerprint") != manifest.fingerprint:
        raise UserError(
            f"{path}: the fingerprint is {value.get('fingerprint')}, but that of the shards and tokenizer it lists is "
            f"{manifest.fingerprint}. The file was edited or damaged: restore it or build the corpus again."
        )
    return manifest


def _parse(value: dict[str, Any], path: str) -> Manifest:
    try:
        manifest = Manifest(
            tokenizer_fingerprint=str(value["tokenizer_fingerprint"]),
            vocab_size=(vocab_size := _integer("vocab_size", value["vocab_size"], 1 << 32)),
            special_ids={
                name: None if (one := value["special_ids"].get(name)) is None else _integer(name, one, vocab_size)
                for name in SPECIAL_TOKENS
            },
            all_special_ids=[_integer("all_special_ids", one, vocab_size) for one in value["all_special_ids"]],
            splits={str(split): _parse_table(str(split), columns) for split, columns in value["splits"].items()},
            has_sentences=_flag(value["has_sentences"]),
            has_words=_flag(value["has_words"]),
            sources=[dict(source) for source in value["sources"]],
            drops=dict(value["drops"]),
            extra=dict(value["extra"]),
        )
    except KeyError as error:
        raise UserError(f"{path} is not valid: the key {error} is missing. Build the corpus again.") from None
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not valid: {error}. Build the corpus again.") from None
    if value.get("dtype") != manifest.dtype:
        raise UserError(
            f"{path} is not valid: dtype is {value.get('dtype')!r}, but {manifest.vocab_size} ids are stored as "
            f"{manifest.dtype}. Build the corpus again."
        )
    return manifest


def _parse_table(split: str, columns: Mapping[str, Any]) -> ShardTable:
    if not _SPLIT_NAME.fullmatch(split):
        raise ValueError(f"split {split!r} is not a plain folder name and could lead outside the corpus directory")
    numbers = {name: _column(name, columns[name]) for name in ("documents", "tokens", "bytes")}
    digests = {name: str(columns[name]) for name in ("sha256", "index_sha256")}
    num_shards = [len(column) if column.ndim == 1 else -1 for column in numbers.values()]
    num_shards += [len(joined) // 64 for joined in digests.values()]
    if not all(map(_are_digests, digests.values())):
        raise ValueError(f"split {split!r}: sha256 and index_sha256 must be 64 hexadecimal digits a shard")
    if len(set(num_shards)) != 1:
        raise ValueError(
            f"split {split!r} lists documents, tokens, bytes, sha256 and index_sha256 of "
            f"{', '.join(map(str, num_shards))} shards"
        )
    if any((column < 0).any() for column in numbers.values()):
        raise ValueError(f"split {split!r} has a negative count")
    return ShardTable(
        numbers["documents"], numbers["tokens"], numbers["bytes"], digests["sha256"], digests["index_sha256"]
    )


def _column(name: str, values: Any) -> NDArray[np.int64]:
    column = np.array(values) if values else np.zeros(0, np.int64)
    if column.dtype != np.int64:  # a number beyond 64 bits is read as a float
        raise ValueError(f"{name}: a value is not a whole number from 0 to {(1 << 63) - 1}")
    return column


_CHECKED_BYTES: Final = 1 << 18
"""Looked at together: a processor's cache holds them."""


def _are_digests(joined: str) -> bool:
    """Whether it is 64 lower-case hexadecimal digits a shard; a regular expression takes many times as long."""
    if len(joined) % 64 or not joined.isascii():
        return False
    codes = np.frombuffer(joined.encode(), np.uint8)
    for first in range(0, len(codes), _CHECKED_BYTES):
        code = codes[first : first + _CHECKED_BYTES]
        if not ((code - np.uint8(ord("0")) < 10) | (code - np.uint8(ord("a")) < 6)).all():  # modulo 256
            return False
    return True


def _integer(name: str, value: Any, end: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < end:
        raise ValueError(f"{name}: {value!r} is not a whole number from 0 to {end - 1}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def check_tokenizer(files: CorpusFiles, manifest: Manifest) -> None:
    """Refuse a ``tokenizer/`` that is not the one the shards were written with.

    Raises:
        UserError: ``tokenizer/tokenizer.json`` is missing or has another sha256.
    """
    path = files.describe(TOKENIZER_NAME)
    try:
        content = files.read(TOKENIZER_NAME, manifest.tokenizer_fingerprint)
    except FileNotFoundError:
        raise UserError(
            f"The corpus has no tokenizer: {path} does not exist. Restore it or build the corpus again."
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != manifest.tokenizer_fingerprint:
        raise UserError(
            f"{path} has sha256 {found}, but the corpus was built with {manifest.tokenizer_fingerprint}: its token ids "
            "would mean other text. Restore the corpus's own tokenizer or build the corpus again."
        )
