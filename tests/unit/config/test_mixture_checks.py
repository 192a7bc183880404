"""Mixtures of objectives in a config: what entries inherit, and each thing that they must share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.bad_steps import BadStepsConfig
from pipeline.config.checks import run_problems
from pipeline.config.derived import has_generator, head_of, row_objective
from pipeline.config.loading import ConfigError, load_run_config, to_yaml
from pipeline.config.objective import ObjectiveConfig, TaskConfig
from pipeline.config.run import DataConfig, ModelConfig, RunConfig, RunObjectiveConfig, TrainConfig


def mixed(*tasks: dict[str, Any], family: str = "bert", packing: str = "best_fit", **train: Any) -> RunConfig:
    return RunConfig(
        run_directory="r",
        data=DataConfig(corpus="c", packing=packing),  # type: ignore[arg-type]
        model=ModelConfig(family=family),  # type: ignore[arg-type]
        objective=RunObjectiveConfig(mixture=[TaskConfig(**task) for task in tasks]),
        train=TrainConfig(**train),
    )


MLM, SPAN = {"name": "mlm"}, {"name": "mlm", "label": "span", "masking": "span"}
NSP, SOP = {"name": "mlm+nsp"}, {"name": "mlm+sop"}
RTD, CLM, DENOISE = {"name": "rtd"}, {"name": "clm"}, {"name": "denoise"}


def distil(teacher: str | None = "t", **more: Any) -> dict[str, Any]:
    return {"name": "distil", "teacher": teacher, **more}


@pytest.mark.parametrize(
    "config",
    [
        mixed(MLM, SPAN),
        mixed(MLM),
        mixed(MLM, NSP, SPAN, packing="pairs_nsp"),
        mixed(MLM, distil(), distil(label="cold", temperature=1.0)),
        mixed(CLM, distil(), family="gpt2"),
        mixed(RTD, {**RTD, "label": "dense", "mask_rate": 0.3}, family="electra"),
        mixed(DENOISE, {**DENOISE, "label": "deleted", "deletion_rate": 0.1}, family="bart"),
    ],
)
def test_what_can_be_mixed(config: RunConfig) -> None:
    assert run_problems(config) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (mixed(MLM, {**SPAN, "weight": 0.0}), "objective.mixture.1.weight: 0.0 must be a finite number above 0"),
        (mixed(MLM, {**SPAN, "mask_rate": 1.0}), "objective.mixture.1.mask_rate: 1.0 is outside (0, 1)"),
        (mixed(MLM, CLM), "objective.mixture.1.name: `clm` does not train family `bert`; use `mlm` or"),
        (mixed(MLM, MLM), "objective.mixture.1.label: `mlm` is used twice; give each objective a label of its own."),
        (mixed(MLM, {**SPAN, "label": "of_spans"}), "objective.mixture.1.label: 'of_spans': letters, digits"),
        (mixed(MLM, {**SPAN, "label": ""}), "objective.mixture.1.label: '': letters, digits"),
        (mixed(MLM, {**SPAN, "label": "scale"}), "objective.mixture.1.label: `loss_scale` is another metric"),
        (mixed(MLM, NSP), "data.packing: `mlm+nsp` learns from the pairs of `pairs_nsp`; set that instead of"),
        (
            mixed(NSP, SOP, packing="pairs_nsp"),
            "objective.mixture: `mlm+nsp` and `mlm+sop` learn from rows of different packings (pairs_nsp, pairs_sop)",
        ),
        (
            mixed(RTD, MLM, family="electra"),
            "objective.mixture: `rtd` trains a generator and a discriminator, and `mlm` does not: a run trains one",
        ),
        (mixed(distil(None), MLM), "objective.mixture.0.teacher: required by `distil`"),
        (mixed({**MLM, "teacher": "t"}, SPAN), "objective.mixture.0.teacher: `mlm` has none"),
        (mixed(distil("a"), distil("b", label="other")), "objective.mixture: 2 teachers (a, b): a run has memory for"),
        (
            mixed(distil(), NSP, packing="pairs_nsp"),
            "objective.mixture: `mlm+nsp` needs a model with a head for pairs, and `distil` has a teacher without",
        ),
        (
            mixed(MLM, SPAN, bad_steps=BadStepsConfig(spike_factor=10.0)),
            "train.bad_steps.spike_factor: the losses of a mixture's objectives have levels of their own",
        ),
        (
            mixed({**CLM, "masking": "span"}, family="gpt2"),
            "objective.mixture.0.masking: `clm` masks nothing, so `span` has no use",
        ),
    ],
)
def test_each_problem_is_named_once(config: RunConfig, message: str) -> None:
    (problem,) = run_problems(config)
    assert problem.startswith(message)


def test_causal_rows_take_no_pairs() -> None:
    problems = run_problems(mixed(CLM, distil(), family="gpt2", packing="pairs"))
    assert [problem for problem in problems if "pairs" in problem and problem.startswith("data.packing")]


def test_an_encoder_and_decoder_is_not_mixed_with_others() -> None:
    problems = run_problems(mixed(DENOISE, MLM, family="bart"))
    assert any("`denoise` trains an encoder and a decoder, and `mlm` does not" in problem for problem in problems)


def test_entries_take_over_what_they_have_a_use_for(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    mixture = "[{name: distil}, {name: mlm}]"
    path.write_text(
        f"run_directory: r\ndata: {{corpus: c}}\nobjective: {{teacher: t, mask_rate: 0.3, mixture: {mixture}}}\n"
    )
    taught, alone = load_run_config(path).objective.tasks
    assert (taught.teacher, alone.teacher) == ("t", None)
    assert taught.mask_rate == alone.mask_rate == 0.3


def test_causal_and_masked_tokens_are_not_mixed() -> None:
    """Family ``auto`` has both, one at a time."""
    problems = run_problems(mixed(MLM, CLM, family="auto"))
    assert any("`clm` reads rows without the special tokens of `mlm`" in problem for problem in problems)


def test_what_follows_from_the_objectives() -> None:
    assert head_of(mixed(MLM, NSP)) == "pairs"
    assert head_of(mixed(MLM, SPAN)) == "tokens"
    assert has_generator(mixed(RTD, {**RTD, "label": "b"}))
    assert not has_generator(mixed(MLM))
    config = mixed(CLM, distil(temperature=3.0), family="gpt2")
    rows = [row_objective(config, task) for task in config.objective.tasks]
    assert [(each.name, each.temperature) for each in rows] == [("clm", 2.0), ("clm", 3.0)]
    alone = replace(config, objective=RunObjectiveConfig(name="clm"))
    assert alone.objective.tasks == [alone.objective]
    assert ObjectiveConfig().tasks == [ObjectiveConfig()]


YAML = """
run_directory: r
data: {corpus: c}
objective:
  mask_rate: 0.2
  masking: span
  mixture:
    - {weight: 3, masking: token}
    - {label: long, span_max_words: 20}
"""


def test_entries_inherit_and_a_written_config_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    config = load_run_config(path)
    first, second = config.objective.mixture
    assert (first.mask_rate, first.masking, first.weight, first.shown_label) == (0.2, "token", 3.0, "mlm")
    assert (second.mask_rate, second.masking, second.weight, second.span_max_words) == (0.2, "span", 1.0, 20)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_run_config(tmp_path / "again.yaml") == config
    on_the_command_line = load_run_config(path, ["--objective.mixture", "[{name: mlm}]", "--objective.mask_rate=0.5"])
    assert [task.mask_rate for task in on_the_command_line.objective.mixture] == [0.5]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("[{mask_rat: 0.2}]", "objective.mixture.0.mask_rat: unknown key. Did you mean"),
        ("[{weight: much}]", "objective.mixture.0.weight: 'much' is not a number"),
        ("[mlm]", "objective.mixture.0: 'mlm' is not a section"),
        ("[{mixture: []}]", "objective.mixture.0.mixture: unknown key"),
        ("much", "objective.mixture: 'much' is not a list of sections"),
    ],
)
def test_entries_are_read_strictly(mixture: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"run_directory: r\ndata: {{corpus: c}}\nobjective: {{mixture: {mixture}}}\n")
    with pytest.raises(ConfigError) as raised:
        load_run_config(path)
    assert message in str(raised.value)
