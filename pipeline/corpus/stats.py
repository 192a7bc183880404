"""`pretrain corpus stats`: what a finished corpus holds, from its manifest and indexes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import UserError
from pipeline.corpus.summary import language_lines
from pipeline.shards.files import CorpusFiles, corpus_files
from pipeline.shards.index import read_index
from pipeline.shards.manifest import Manifest, read_manifest

_PERCENTILES = (5, 25, 50, 75, 95)


def corpus_stats(location: str | Path) -> dict[str, Any]:
    """Facts of a corpus, local or remote, ready for JSON.

    Returns:
        fingerprint, vocab_size, dtype, special_ids, has_sentences, has_words, drops, sources (provenance of each),
        languages (documents and tokens of each, in all and by split; empty if the sources have none), unknown_tokens,
        validation_unigram_entropy (nats), and per split: documents, tokens, shards, bytes, and the
        document lengths in tokens (mean, shortest, longest, percentiles).

    Raises:
        UserError: no corpus there, or a damaged manifest or index.
    """
    files = corpus_files(location)
    manifest = read_manifest(files)
    extra = manifest.extra
    return {
        "directory": files.location,
        "fingerprint": manifest.fingerprint,
        "vocab_size": manifest.vocab_size,
        "dtype": manifest.dtype,
        "special_ids": dict(manifest.special_ids),
        "has_sentences": manifest.has_sentences,
        "has_words": manifest.has_words,
        "splits": {split: _split_stats(files, split, manifest) for split in manifest.splits},
        "sources": [dict(source) for source in manifest.sources],
        "drops": dict(manifest.drops),
        "languages": extra.get("languages", {}),
        "unknown_tokens": extra.get("unknown_tokens"),
        "validation_unigram_entropy": extra.get("validation_unigram_entropy"),
    }


def _split_stats(files: CorpusFiles, split: str, manifest: Manifest) -> dict[str, Any]:
    table = manifest.splits[split]
    lengths = [read_index(files, split, number, manifest).lengths for number in range(len(table))]
    joined = np.concatenate([*lengths, np.zeros(0, np.uint32)])
    facts: dict[str, Any] = {
        "documents": int(table.documents.sum()),
        "tokens": int(table.tokens.sum()),
        "shards": len(table),
        "bytes": int(table.bytes.sum()),
    }
    if len(joined):
        facts["document_tokens"] = {
            "mean": round(float(joined.mean()), 1),
            "shortest": int(joined.min()),
            "longest": int(joined.max()),
            "percentiles": {
                str(share): int(value)
                for share, value in zip(_PERCENTILES, np.percentile(joined, _PERCENTILES), strict=True)
            },
        }
    return facts


def stats_lines(stats: dict[str, Any]) -> list[str]:
    """The facts of :func:`corpus_stats` for people.

    Raises:
        UserError: the provenance in the manifest, which no checksum covers, was edited.
    """
    lines = [
        f"{stats['directory']}: {stats['vocab_size']:,} ids ({stats['dtype']}), "
        f"fingerprint {stats['fingerprint'][:16]}",
        f"  sentence starts: {_yes(stats['has_sentences'])}, word starts: {_yes(stats['has_words'])}",
    ]
    for split, facts in stats["splits"].items():
        lines.append(
            f"  {split}: {facts['documents']:,} documents, {facts['tokens']:,} tokens, {facts['shards']:,} shards, "
            f"{facts['bytes'] / 1e6:,.1f} MB"
        )
        if length := facts.get("document_tokens"):
            percentiles = ", ".join(f"{share} %: {value:,}" for share, value in length["percentiles"].items())
            lines.append(
                f"    tokens a document: mean {length['mean']:,}, {length['shortest']:,} to {length['longest']:,} "
                f"({percentiles})"
            )
    try:
        return lines + _provenance_lines(stats)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{stats['directory']}: `sources` or `extra` of the manifest are not what a build or import writes "
            f"({type(error).__name__}: {error}). Restore the manifest; training does not read them, and --json prints "
            "them as they are."
        ) from error


def _provenance_lines(stats: dict[str, Any]) -> list[str]:
    lines = []
    for source in stats["sources"]:
        drops = ", ".join(f"{count:,} {reason}" for reason, count in source["drops"].items()) or "none"
        # An import sees no text, and what is synthetic has no path.
        place = f"{source['kind']}, {source['path']}" if "path" in source else source["kind"]
        characters = f"{source['characters']:,} characters, " if "characters" in source else ""
        lines.append(
            f"  source {source['name']} ({place}): {source['records']:,} records, "
            f"{source['documents']:,} documents, {characters}{source['tokens']:,} tokens; "
            f"drops: {drops}"
        )
    lines += [f"  {line}" for line in language_lines(stats["languages"])]
    if stats["unknown_tokens"]:
        lines.append(f"  unknown tokens: {stats['unknown_tokens']:,}")
    if stats["validation_unigram_entropy"]:
        lines.append(f"  unigram entropy of the validation tokens: {stats['validation_unigram_entropy']:.4f} nats")
    return lines


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
