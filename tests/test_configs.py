"""Every YAML that ships: it loads, and it describes the model and recipe that its name promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.corpus import CorpusConfig
from pipeline.config.loading import load_any_config, load_run_config
from pipeline.config.run import RunConfig
from pipeline.config.synthetic import SyntheticConfig
from pipeline.models.flops import num_parameters

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
CORPORA = sorted((CONFIGS / "corpus").glob("*.yaml"))


@pytest.mark.parametrize("path", [*RUNS, *CORPORA], ids=lambda path: path.stem)
def test_it_loads(path: Path) -> None:
    of_corpus = SyntheticConfig if path.stem == "synthetic" else CorpusConfig
    assert isinstance(load_any_config(path), of_corpus if path in CORPORA else RunConfig)


def test_all_presets_are_there() -> None:
    names = {
        "bert_base",
        "bert_large",
        "bert_large_lamb",
        "demo",
        "gpt2_medium",
        "gpt2_small",
        "gpt2_xl",
        "roberta_base",
    }
    assert {path.stem for path in RUNS} == names
    assert {path.stem for path in CORPORA} == {"demo", "synthetic", "text_files", "wikipedia_bookcorpus"}


@pytest.mark.parametrize(
    ("name", "vocab_size", "parameters"),
    [
        # Published: 110M and 340M with pooler (BERT), 125M (RoBERTa), 124M, 355M and 1.5B (GPT-2, as corrected later).
        ("bert_base", 30522, 109_514_298),
        ("bert_large", 30522, 335_174_458),
        ("bert_large_lamb", 30522, 335_174_458),
        ("roberta_base", 50265, 124_697_433),
        ("gpt2_small", 50257, 124_439_808),
        ("gpt2_medium", 50257, 354_823_168),
        ("gpt2_xl", 50257, 1_557_611_200),
    ],
)
def test_sizes_are_the_published_ones(name: str, vocab_size: int, parameters: int) -> None:
    config = load_run_config(CONFIGS / f"{name}.yaml")
    assert num_parameters(config.model, vocab_size) == parameters


def test_runs_of_different_presets_do_not_share_a_directory() -> None:
    directories = [load_run_config(path).run_directory for path in RUNS]
    assert len(set(directories)) == len(directories)
