"""What a build tells at its end."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.corpus.languages import MIXTURE_NAME
from pipeline.corpus.reading import BAD_REASONS
from pipeline.shards.manifest import Manifest

SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class BuildSummary:
    """Facts of a finished build."""

    output: str
    """The corpus directory."""

    fingerprint: str
    """Names the corpus: equal ones have equal tokenizers and shards."""

    was_complete: bool
    """The corpus of this config was there already, and nothing was done."""

    documents: int
    """Documents in all splits."""

    tokens: int
    """Tokens in all splits."""

    vocab_size: int
    """Ids of the tokenizer."""

    splits: dict[str, dict[str, int]]
    """Documents, tokens and shards of every split."""

    drops: dict[str, int]
    """Records that did not become a document, by reason."""

    problems: list[dict[str, Any]] = field(default_factory=list)
    """Place, reason and detail of the first bad records; all are in ``build_log.jsonl``."""

    notes: list[str] = field(default_factory=list)
    """Further facts worth a line."""

    languages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Documents and tokens of every language, in all and by split; empty if the sources have none."""

    mixture: str = ""
    """Where corpora were made by language: the part of a run's config (YAML) that trains on them."""

    seconds: float = 0.0
    """Time this command took."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        head = (
            "The corpus of this config was complete already, nothing to do (whether its input changed is not looked at)"
            if self.was_complete
            else f"Built in {self.seconds:.1f} s"
        )
        shown = [f"{head}: {self.output}"]
        shown.append(f"  {self.documents:,} documents, {self.tokens:,} tokens, {self.vocab_size:,} ids")
        for split, facts in self.splits.items():
            shards = f"{facts['shards']:,} shard" + ("s" if facts["shards"] != 1 else "")
            share = 100 * facts["tokens"] / max(1, self.tokens)
            shown.append(
                f"  {split}: {facts['documents']:,} documents, {facts['tokens']:,} tokens ({share:.1f} %), {shards}"
            )
        shown += [f"  {line}" for line in language_lines(self.languages)]
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in self.drops.items() if count)
        shown.append(f"  dropped: {dropped or 'nothing'}")
        shown += [f"    {format_problem(problem)}" for problem in self.problems]
        num_bad = sum(self.drops.get(reason, 0) for reason in BAD_REASONS)
        if num_bad > len(self.problems):
            shown.append(f"    ... and {num_bad - len(self.problems):,} more in build_log.jsonl")
        shown += [f"  {note}" for note in self.notes]
        if self.mixture:
            shown.append(f"  a corpus directory a language; to train on all ({self.output}/{MIXTURE_NAME}):")
            shown += [f"    {line}" for line in self.mixture.splitlines()]
        return shown


def format_problem(problem: Mapping[str, Any]) -> str:
    """``texts/a.jsonl:17 unreadable (not JSON: ...)``."""
    return f"{problem['place']} {problem['reason']}" + (f" ({problem['detail']})" if problem["detail"] else "")


def bad_share_message(problems: Sequence[Mapping[str, Any]], num_records: int, limit: float, log: Path) -> str:
    """Why a build stops over too many bad records."""
    places = "".join(f"\n  {format_problem(problem)}" for problem in problems[:SHOWN_PROBLEMS])
    return (
        f"{len(problems):,} of {num_records:,} records cannot be used "
        f"({100 * len(problems) / max(1, num_records):.3g} %); "
        f"at most {100 * limit:.3g} % may (cleaning.max_bad_share: {limit}). The first places:{places}\n"
        f"All of them are in {log}. Repair or remove these files, or raise cleaning.max_bad_share, and run again."
    )


def summary_of(output: Path, manifest: Manifest, was_complete: bool, seconds: float) -> BuildSummary:
    """The summary of the corpus that ``manifest`` describes."""
    splits = {
        split: {"documents": int(table.documents.sum()), "tokens": int(table.tokens.sum()), "shards": len(table)}
        for split, table in manifest.splits.items()
    }
    extra = manifest.extra
    notes = []
    if extra.get("unknown_tokens"):
        share = 100 * extra["unknown_tokens"] / max(1, extra["tokens"])
        notes.append(f"{extra['unknown_tokens']:,} tokens are unknown to the tokenizer ({share:.2g} %)")
    if extra.get("repeated_ids"):
        notes.append(
            f"{extra['repeated_ids']:,} documents have the id of another one: set `id_field` to a unique field"
        )
    return BuildSummary(
        output=str(output),
        fingerprint=manifest.fingerprint,
        was_complete=was_complete,
        documents=sum(facts["documents"] for facts in splits.values()),
        tokens=sum(facts["tokens"] for facts in splits.values()),
        vocab_size=manifest.vocab_size,
        splits=splits,
        drops={reason: int(count) for reason, count in manifest.drops.items()},
        problems=list(extra.get("problems", [])),
        notes=notes,
        languages=dict(extra.get("languages", {})),
        seconds=round(seconds, 3),
    )


def summary_by_language(
    output: Path, manifests: Mapping[str, Manifest], was_complete: bool, seconds: float
) -> BuildSummary:
    """The summary of a build that made a corpus directory a language; ``manifests`` by their names.

    Its ``fingerprint`` is the sha256 of those of the corpora, joined in order.
    """
    parts = [summary_of(output, manifest, was_complete, seconds) for manifest in manifests.values()]
    joined = "".join(part.fingerprint for part in parts)
    splits: dict[str, Counter[str]] = {}
    for part in parts:
        for split, facts in part.splits.items():
            splits.setdefault(split, Counter()).update(facts)
    drops: Counter[str] = sum((Counter(part.drops) for part in parts), Counter())
    return replace(
        parts[0],
        fingerprint=hashlib.sha256(joined.encode()).hexdigest(),
        documents=sum(part.documents for part in parts),
        tokens=sum(part.tokens for part in parts),
        splits={split: dict(facts) for split, facts in splits.items()},
        drops=drops_of(Counter({f"drop:{reason}": count for reason, count in drops.items()})),
        problems=[problem for part in parts for problem in part.problems][:SHOWN_PROBLEMS],
        notes=[f"{name}: {note}" for name, part in zip(manifests, parts, strict=True) for note in part.notes],
        languages={name: found for part in parts for name, found in part.languages.items()},
        mixture=(output / MIXTURE_NAME).read_text(encoding="utf-8"),
    )


def language_lines(languages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """``language en: 12 documents, 3,456 tokens (held out: 1 and 234)``, a line a language."""
    lines = []
    for language, facts in languages.items():
        held_out = facts["splits"].get("validation", {"documents": 0, "tokens": 0})
        lines.append(
            f"language {language}: {facts['documents']:,} documents, {facts['tokens']:,} tokens "
            f"(held out: {held_out['documents']:,} and {held_out['tokens']:,})"
        )
    return lines


def drops_of(counts: Counter[str]) -> dict[str, int]:
    """``{"drop:empty": 2, ...}`` -> ``{"empty": 2}``, bad reasons first."""
    drops = {key.removeprefix("drop:"): count for key, count in counts.items() if key.startswith("drop:")}
    known = [*BAD_REASONS, "too_short", "duplicate"]
    return {reason: drops[reason] for reason in known if drops.get(reason)}
