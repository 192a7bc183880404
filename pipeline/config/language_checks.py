"""Contradictions among the languages of a corpus config."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

from pipeline.config.corpus import CorpusConfig

_LANGUAGE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Also the name of a folder, on every system."""


def language_problems(config: CorpusConfig) -> Iterator[str]:
    """Problems of `sources.N.language`, `tokenizer.language_exponent` and `shards.by_language`."""
    named = {number: source.language for number, source in enumerate(config.sources) if source.language is not None}
    if named:
        first, language = next(iter(named.items()))
        for number in range(len(config.sources)):
            if number not in named:
                yield (
                    f"sources.{number}.language: missing, but sources.{first} has one (`{language}`); give every "
                    "source its language, or none."
                )
    spelled: dict[str, str] = {}
    for number, language in named.items():
        if not _LANGUAGE_NAME.fullmatch(language):
            yield (
                f"sources.{number}.language: {language!r} cannot name a folder; use up to 64 letters, digits, `-` and "
                "`_`, beginning with a letter or digit, e.g. `en` or `zh-Hant`."
            )
        elif spelled.setdefault(language.lower(), language) != language:
            yield (
                f"sources.{number}.language: {language!r} differs from {spelled[language.lower()]!r} in its case only; "
                "write a language one way."
            )
    exponent = config.tokenizer.language_exponent
    if not (math.isfinite(exponent) and exponent >= 0):
        yield f"tokenizer.language_exponent: {exponent} must be a finite number, 0 or more."
    if config.shards.by_language and not named:
        yield "shards.by_language: no source has a language; set `language` at every source, or leave it out."
