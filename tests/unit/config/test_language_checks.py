"""Each contradiction among the languages of a corpus config has its message."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config.checks import corpus_problems
from pipeline.config.corpus import CorpusConfig, ShardConfig, SourceConfig, TokenizerConfig
from pipeline.config.synthetic import SyntheticConfig
from pipeline.config.synthetic_checks import synthetic_problems


def config_of(*languages: str | None) -> CorpusConfig:
    return CorpusConfig([SourceConfig(f"s{n}", path="p", language=name) for n, name in enumerate(languages)])


def test_good_languages_have_no_problem() -> None:
    for languages in ((None, None), ("en", "en"), ("en", "zh-Hant", "pt_BR", "1")):
        assert corpus_problems(config_of(*languages)) == []
    assert corpus_problems(replace(config_of("en", "de"), shards=ShardConfig(by_language=True))) == []


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        (("en", None), "sources.1.language: missing, but sources.0 has one (`en`); give every source its language, or"),
        ((None, "de"), "sources.0.language: missing, but sources.1 has one (`de`)"),
        (("../en",), "sources.0.language: '../en' cannot name a folder; use up to 64 letters, digits, `-` and `_`"),
        (("",), "sources.0.language: '' cannot name a folder"),
        ((".build",), "sources.0.language: '.build' cannot name a folder"),
        (("en", "de\n"), "sources.1.language: 'de\\n' cannot name a folder"),
        (("e" * 65,), "cannot name a folder"),
        (("en", "EN"), "sources.1.language: 'EN' differs from 'en' in its case only; write a language one way"),
    ],
)
def test_each_problem_of_a_language_is_named(languages: tuple[str | None, ...], message: str) -> None:
    (problem,) = corpus_problems(config_of(*languages))
    assert message in problem


@pytest.mark.parametrize("exponent", [-0.1, float("inf"), float("nan")])
def test_an_exponent_out_of_range_is_named(exponent: float) -> None:
    config = replace(config_of("en"), tokenizer=TokenizerConfig(language_exponent=exponent))
    (problem,) = corpus_problems(config)
    assert problem == f"tokenizer.language_exponent: {exponent} must be a finite number, 0 or more."


def test_corpora_by_language_need_languages() -> None:
    shards = ShardConfig(by_language=True)
    (problem,) = corpus_problems(replace(config_of(None), shards=shards))
    assert problem == ("shards.by_language: no source has a language; set `language` at every source, or leave it out.")
    (problem,) = synthetic_problems(SyntheticConfig(shards=shards))
    assert problem == "shards.by_language: a synthetic corpus has one language; leave it out."
