"""Languages of a corpus: their shares of the tokenizer's training documents, and one corpus directory for each.

Shares are `size^exponent`, normalised, as in the data and the vocabulary of multilingual BERT (Devlin et al. 2019,
exponent 0.7; XLM, Conneau and Lample 2019, 0.5 and 0.7): below 1 small languages are lifted.

Letters: L languages, D documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.dealing import evenly_spread

MIXTURE_NAME: Final = "mixture.yaml"
"""Written last into the output of a build by language: with it the build is complete."""


def languages_of(config: CorpusConfig) -> dict[str, list[int]]:
    """Numbers of the sources of every language, in the order of the config; empty if no source has one."""
    languages: dict[str, list[int]] = {}
    for number, source in enumerate(config.sources):
        if source.language is not None:
            languages.setdefault(source.language, []).append(number)
    return languages


def folders_of(config: CorpusConfig) -> dict[str, list[int]]:
    """Corpus directories below the output ("": the output itself) and the numbers of the sources that go into each."""
    return languages_of(config) if config.shards.by_language else {"": list(range(len(config.sources)))}


def sample_counts(
    num_bytes: NDArray[np.int64], num_documents: NDArray[np.int64], exponent: float, most: int
) -> NDArray[np.int64]:
    """How many documents to take of every language, so that their bytes are shared out as `num_bytes^exponent`.

    A language whose documents have ``b`` bytes on average gets a number proportional to ``num_bytes^exponent / b``.
    That may be more than it has: its documents are then taken several times (as the word counts of multilingual BERT
    are weighted).

    Args:
        num_bytes: text of every language, (L,).
        num_documents: of every language, (L,).
        most: documents of the sample, at most; never more than there are.

    Returns:
        int64 (L,): sum is the smaller one of ``most`` and all documents (or a little more, as every language that has
        documents gets one).
    """
    counts = np.zeros(len(num_bytes), np.int64)
    there = num_documents > 0
    size, documents = num_bytes[there].astype(np.float64), num_documents[there].astype(np.float64)
    total = min(most, int(num_documents.sum()))
    share = (size / size.max(initial=1.0)) ** exponent * documents / size
    exact = share / share.sum() * total
    found = np.maximum(1, np.floor(exact)).astype(np.int64)
    missing = max(0, total - int(found.sum()))
    found[np.argsort(found - exact, kind="stable")[:missing]] += 1
    counts[there] = found
    return counts


def repeated_spread(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """``count`` of ``numbers`` (D,), evenly spread: each equally often, but for one."""
    rounds, rest = divmod(count, max(1, len(numbers)))
    times = np.full(len(numbers), rounds)
    times[evenly_spread(len(numbers), rest)] += 1
    return np.repeat(numbers, times)


def language_counts(
    languages: Mapping[str, Sequence[int]], by_source: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> dict[str, dict[str, Any]]:
    """What the manifest keeps of every language: documents and tokens, in all and of every split that has any.

    Args:
        by_source: split -> documents and tokens of every source.
    """
    facts: dict[str, dict[str, Any]] = {}
    for language, sources in languages.items():
        splits = {
            split: {"documents": int(documents[sources].sum()), "tokens": int(tokens[sources].sum())}
            for split, (documents, tokens) in by_source.items()
        }
        total = {name: sum(split[name] for split in splits.values()) for name in ("documents", "tokens")}
        facts[language] = {**total, "splits": {split: found for split, found in splits.items() if found["documents"]}}
    return facts


def mixture_yaml(output: Path, languages: Iterable[str], exponent: float) -> str:
    """The part of a run's config that trains on the corpora of these languages, as YAML."""
    mixture = [{"corpus": str(output / language)} for language in languages]
    return yaml.safe_dump({"data": {"mixture_exponent": exponent, "mixture": mixture}}, sort_keys=False)
