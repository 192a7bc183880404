"""Every YAML that ships: it loads, and it describes the model and recipe that its name promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config.corpus import CorpusConfig
from pipeline.config.loading import load_any_config, load_run_config
from pipeline.config.run import RunConfig
from pipeline.config.synthetic import SyntheticConfig
from pipeline.export.hf import exported_model
from pipeline.models.build import build_model
from pipeline.models.flops import num_parameters

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
CORPORA = sorted((CONFIGS / "corpus").glob("*.yaml"))
EXPERIMENTS = {
    "language_reads_dna": RunConfig,
    "dna": CorpusConfig,
    "language_from_brackets": RunConfig,
    "brackets": SyntheticConfig,
}


def _presets() -> dict[str, tuple[str, int, int, float]]:
    """The table of `docs/models.md`: preset -> class, vocabulary, parameters, millions of them in the paper."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| ([\d,.]+)", PAGE.read_text(), re.MULTILINE)
    numbers = {name: [float(text.replace(",", "")) for text in texts] for name, _, *texts in rows}
    return {name: (kind, int(numbers[name][0]), int(numbers[name][1]), numbers[name][2]) for name, kind, *_ in rows}


PAGE = Path(__file__).parents[1] / "docs" / "models.md"
PRESETS = _presets()


@pytest.mark.parametrize("path", [*RUNS, *CORPORA], ids=lambda path: path.stem)
def test_it_loads(path: Path) -> None:
    of_corpus = SyntheticConfig if path.stem == "synthetic" else CorpusConfig
    assert isinstance(load_any_config(path), of_corpus if path in CORPORA else RunConfig)


@pytest.mark.parametrize("path", [*RUNS, *CORPORA], ids=lambda path: path.stem)
def test_it_passes_the_check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(path)]) == 0
    assert f"{path}: ok" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_loads(name: str) -> None:
    assert isinstance(load_any_config(CONFIGS / "experiments" / f"{name}.yaml"), EXPERIMENTS[name])


def test_all_presets_are_there() -> None:
    assert {path.stem for path in RUNS} == {*PRESETS, "demo"}
    assert {path.stem for path in (CONFIGS / "experiments").iterdir()} == {*EXPERIMENTS}
    assert {path.stem for path in CORPORA} == {"demo", "synthetic", "text_files", "wikipedia_bookcorpus"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_it_has_the_parameters_that_the_table_names(name: str) -> None:
    """By the closed form and by the stock class itself, made without storage; close to what the paper says."""
    class_name, vocab_size, parameters, published = PRESETS[name]
    config = load_run_config(CONFIGS / f"{name}.yaml")
    shape, head = exported_model(config, None)
    assert num_parameters(shape, vocab_size, head=head) == parameters
    ids = dict.fromkeys(("pad", "cls", "sep", "mask", "bos", "eos", "unk"), 1)
    model = build_model(shape, vocab_size=vocab_size, special_ids=ids, head=head, device="meta")
    assert type(model).__name__ == class_name
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert parameters / 1e6 == pytest.approx(published, rel=0.06)


def test_runs_of_different_presets_do_not_share_a_directory() -> None:
    directories = [load_run_config(path).run_directory for path in RUNS]
    assert len(set(directories)) == len(directories)
