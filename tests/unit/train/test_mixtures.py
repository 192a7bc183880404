"""Runs with a mixture of objectives: the same steps for any ranks and restarts, logs and evaluations by objective."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.base.ranks import RankFacts
from pipeline.checkpoints.meta import list_checkpoints
from pipeline.config.derived import batch_plan
from pipeline.config.run import RunConfig
from pipeline.data.digest import combine_row_digests
from pipeline.models.build import build_model
from pipeline.models.flops import flops_per_step
from pipeline.monitor.report import write_report
from pipeline.objectives.batch import Batch
from pipeline.objectives.task_draw import tasks_of_steps
from pipeline.train import teachers
from pipeline.train.module import PretrainModule
from pipeline.train.replay import replay_batch
from pipeline.train.run import train
from pipeline.train.setup import Start, make_module, step_flops
from pipeline.train.streams import open_streams
from pipeline.train.validation import held_out_metrics
from tests.corpora import random_lengths, write_corpus
from tests.runs import load, metrics_of, weights_of, write_config

PAIRS = "[{name: mlm, weight: 0.5}, {label: dense, mask_rate: 0.4, weight: 0.5}, {name: mlm+nsp, label: pairs}]"
MIXTURE = ("--data.packing", "pairs_nsp", "--objective.mixture", PAIRS, "--evaluation.rows", "12")
LABELS = ("mlm", "dense", "pairs")
WEIGHTS = (0.5, 0.5, 1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixtures") / "corpus"
    return write_corpus(
        directory, random_lengths(0, 3, 40), validation=random_lengths(5, 2, 20), vocab_size=50
    ).directory


def batches_of(config: RunConfig, world_size: int, first_step: int = 0) -> dict[int, list[Batch]]:
    """Those of all ranks, by step."""
    plan, streams = batch_plan(config, world_size), open_streams(config)
    found: dict[int, list[Batch]] = {}
    for rank in range(world_size):
        facts = RankFacts(rank, world_size, rank, world_size)
        for batch in streams.train_loader(first_step, plan, facts, torch.device("cpu")):
            found.setdefault(batch.step, []).append(batch)
    return found


def digest_of(batches: list[Batch]) -> str:
    numbers, digests = ([getattr(batch, name) for batch in batches] for name in ("row_numbers", "row_digests"))
    return combine_row_digests(torch.cat(numbers).numpy(), torch.cat(digests).numpy())


def test_every_rank_and_every_start_has_the_same_steps(corpus: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, corpus)
    overrides = (*MIXTURE, "--train.strategy", "ddp")
    expected = {step: replay_batch(load(path, *overrides), step).digest for step in range(1, 21)}
    drawn = dict(zip(range(1, 21), tasks_of_steps(0, WEIGHTS, range(1, 21)), strict=True))
    assert set(drawn.values()) == {0, 1, 2}
    for world_size, first_step, prefetch in ((1, 0, 4), (2, 0, 1), (3, 7, 6), (2, 13, 4)):
        found = batches_of(load(path, *overrides, f"--data.prefetch_steps={prefetch}"), world_size, first_step)
        assert list(found) == list(range(first_step + 1, 21))
        assert {step: {batch.task for batch in batches} for step, batches in found.items()} == {
            step: {drawn[step]} for step in found
        }
        assert {step: digest_of(batches) for step, batches in found.items()} == {step: expected[step] for step in found}
        assert all((batch.num_pairs > 0) <= (batch.task == 2) for batches in found.values() for batch in batches)


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(corpus: Path, tmp_path: Path) -> None:
    """And each step logs the objective that it had; an evaluation logs all."""
    path = write_config(tmp_path, corpus)
    train(load(path, *MIXTURE))
    run = path.with_suffix("")
    lines, weights = metrics_of(run), weights_of(run, 20)
    for line, task in zip(lines, tasks_of_steps(0, WEIGHTS, range(1, 21)), strict=True):
        logged = {name for name in line if name.startswith("loss_")}
        label = LABELS[task]
        assert logged == {f"loss_{label}"} | ({"loss_pairs_mlm", "loss_pairs_nsp"} if task == 2 else set())
        assert line[f"loss_{label}"] == line["loss"]
    held_out = {name: value for name, value in lines[-1].items() if name.startswith("validation_")}
    mean = sum(w * held_out[f"validation_loss_{label}"] for w, label in zip(WEIGHTS, LABELS, strict=True)) / 2
    assert held_out["validation_loss"] == pytest.approx(mean, rel=1e-12)
    assert "validation_accuracy_pairs_nsp" in held_out
    assert "mlm (weight 0.5), dense (weight 0.5), pairs (weight 1)" in write_report(run).read_text()
    for step in list_checkpoints(run):
        if step > 10:
            shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    train(load(path, *MIXTURE))
    again = weights_of(run, 20)
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    assert [line["loss"] for line in metrics_of(run)] == [line["loss"] for line in lines]


def evaluated(config: RunConfig, weights: dict[str, Any] | None) -> tuple[dict[str, float], dict[str, Any]]:
    """Held-out metrics of a model with these weights, or its own, and the weights."""
    plan, streams = batch_plan(config, 1), open_streams(config)
    module = make_module(config, streams, Start(), plan, torch.device("cpu"))
    if weights is not None:
        module.model.load_state_dict(weights, strict=False)
    module.control = SimpleNamespace(sum_floats=lambda *mine: mine)  # type: ignore[assignment]
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision_plugin=SimpleNamespace(val_step_context=torch.no_grad),
    )
    found = held_out_metrics(trainer, module, streams.validation_batches(0, plan, RankFacts()))
    return found, module.model.state_dict()


def test_evaluations_are_those_of_each_objective_alone(corpus: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path, corpus)
    wide = ("--model.initializer_range", "0.3")
    found, weights = evaluated(load(path, *MIXTURE, *wide), None)
    losses = []
    for label, own in zip(LABELS, (["mlm"], ["mlm", "--objective.mask_rate", "0.4"], ["mlm+nsp"]), strict=True):
        overrides = (*MIXTURE[:2], *MIXTURE[4:], *wide, "--objective.name", *own)
        alone, _ = evaluated(load(path, *overrides), weights)
        losses.append(alone["loss"])
        assert found[f"loss_{label}"] == pytest.approx(alone["loss"], rel=1e-6)
        assert found[f"perplexity_{label}"] == pytest.approx(alone["perplexity"], rel=1e-5)
        assert found[f"bits_per_token_{label}"] == pytest.approx(alone["bits_per_token"], rel=1e-6)
        if label == "pairs":
            for term in ("mlm", "nsp"):
                assert found[f"loss_pairs_{term}"] == pytest.approx(alone[f"loss_{term}"], rel=1e-6)
                assert found[f"accuracy_pairs_{term}"] == alone[f"accuracy_{term}"]
        else:
            assert found[f"accuracy_{label}"] == alone["accuracy_mlm"]
    assert found["loss"] == pytest.approx((0.5 * losses[0] + 0.5 * losses[1] + losses[2]) / 2, rel=1e-6)
    assert len({round(loss, 6) for loss in losses}) == 3


def test_only_the_steps_with_a_teacher_pay_for_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path, corpus)
    gpt = ("--model.family", "gpt2", "--objective.name", "clm")
    config = load(path, *gpt, "--model.num_layers", "3")
    streams = open_streams(config)
    facts: dict[str, Any] = {"vocab_size": streams.manifest.vocab_size, "special_ids": streams.manifest.special_ids}
    build_model(config.model, **facts, seed=5).save_pretrained(tmp_path / "teacher")
    mixture = f"[{{weight: 2}}, {{name: distil, teacher: {tmp_path / 'teacher'}}}]"
    config = load(path, *gpt, "--objective.mixture", mixture, "--train.steps", "10")
    monkeypatch.setattr(teachers, "read_vocabulary", lambda _: None)  # the corpus has the shell of a tokenizer
    counted: list[tuple[int, ...]] = []
    monkeypatch.setattr(PretrainModule, "on_train_end", lambda module: counted.append(module.all_counts))
    train(config)
    lines = metrics_of(tmp_path / "run")
    tokens = [line["tokens"] - before for line, before in zip(lines, [0, *(x["tokens"] for x in lines)], strict=False)]
    taught = sum(count for count, line in zip(tokens, lines, strict=True) if "loss_distil" in line)
    assert 0 < taught < sum(tokens)
    assert {name for line in lines for name in line if name.startswith("loss_")} == {
        "loss_clm", "loss_distil", "loss_distil_clm", "loss_distil_soft", "loss_distil_cosine",
    }  # fmt: skip
    assert "validation_accuracy_clm" in lines[-1]
    assert "validation_accuracy_distil" in lines[-1]
    (counts,) = counted
    assert (counts[0], counts[9]) == (sum(tokens), taught)
    shape = config.model
    teacher = load(path, *gpt, "--model.num_layers", "3").model
    expected = flops_per_step(shape, 50, *counts[:6]) + flops_per_step(teacher, 50, *counts[9:15]) / 3
    assert step_flops(config)(shape, 50, *counts) == pytest.approx(expected, rel=1e-12)
