"""`benchmarks/step.py` in small: every entry is measured, and what compares the sides finds a difference."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import correctness, equal_steps, our_training, peak_memory, step, workload
from benchmarks.clock import StepClock
from benchmarks.ladder import open_rung, rungs
from benchmarks.peers import hf_trainer, plain_gpt
from benchmarks.workload import Hardware, Shape, Workload, full_rows, synthetic_corpus
from pipeline.train import module

BERT = Shape("bert", hidden_size=32, num_layers=2, num_heads=2, vocab_size=512, sequence_length=64)
GPT = replace(BERT, family="gpt2")
HAS_TRAINER = hf_trainer.missing_library() is None


@pytest.fixture(scope="module", autouse=True)
def _quick_and_apart():
    """One thread, and no compiler: what a graph computes is tested beside the code that compiles it."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return synthetic_corpus(tmp_path_factory.mktemp("corpus"), 512, 30_000, mean_tokens=40)


@pytest.fixture(params=[BERT, GPT], ids=["bert", "gpt2"])
def work(request, corpus: Path) -> Workload:
    return Workload(request.param, corpus, 4, Hardware())


def test_every_entry_is_measured(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(step, "WORK", tmp_path)
    # In processes of their own, each of which imports torch: measured below without.
    monkeypatch.setattr("benchmarks.step_entries.measure_side", lambda side, work: 1.0 + len(side))
    monkeypatch.setattr("sys.argv", ["benchmarks/step.py"])
    path = tmp_path / "step.json"
    step.main(["--quick", "--threads", "1", "--json", str(path)])
    record = json.loads(path.read_text())
    peers = {result["name"]: set(result["peers"]) for result in record["results"]}
    assert {"bert_padded", "bert_full_rows", "gpt_full_rows", "gpt_plain_loop", "peak_memory, bert"} <= set(peers)
    assert peers["gpt_plain_loop"] == {"plain loop", "plain loop, compiled"}
    assert all(result["ours"] > 0 for result in record["results"])
    assert {"bert", "gpt", "ladder_bert", "ladder_gpt2"} == set(record["tables"])
    if HAS_TRAINER:
        assert peers["bert_padded"] == {"HF Trainer, padded to 64", "HF Trainer, padded to the longest of a batch"}
        assert [len(peers[name]) for name in ("bert_full_rows", "gpt_full_rows", "peak_memory, bert")] == [1, 1, 2]
        assert record["facts"]["skipped"] == {}
    else:
        assert peers["bert_padded"] == set()
        assert "accelerate" in record["facts"]["skipped"]["HF Trainer"]
        assert all(result["goal"] == {} for result in record["results"] if not result["peers"])


def test_attention_across_documents_is_found(work: Workload, monkeypatch) -> None:
    """Packed rows of ours computed as if every row were one document."""
    assert [row[:3] for row in correctness.check_numbers(work, ["fp32"])] == [[work.shape.family, "fp32", "packed"]]
    ends_of_rows = torch.arange(0, 5 * 64, 64, dtype=torch.int32)
    inside = our_training.OurStep.loss_sum

    def across(self, batch):
        bounds = ends_of_rows[torch.arange(len(batch.cu_seqlens)).clamp(max=4)]
        return inside(self, replace(batch, cu_seqlens=bounds))

    monkeypatch.setattr(our_training.OurStep, "loss_sum", across)
    with pytest.raises(AssertionError, match=f"{work.shape.family}, packed, fp32: the (loss|gradient) is"):
        correctness.check_numbers(work, ["fp32"])


def test_sides_that_train_differently_are_told_apart(work: Workload, monkeypatch) -> None:
    losses = equal_steps.assert_same_training(work, HAS_TRAINER)
    assert len(losses) == equal_steps.NUM_STEPS
    assert len(set(losses)) == equal_steps.NUM_STEPS
    if work.shape.is_causal:
        monkeypatch.setattr(plain_gpt, "LEARNING_RATE", 3 * workload.LEARNING_RATE)
        with pytest.raises(AssertionError, match="the loss of step 2 of ours and of the plain loop differ"):
            equal_steps.assert_same_training(work, with_trainer=False, tolerance=1e-6)


def test_the_ladder_computes_one_loss_on_packed_rows(work: Workload) -> None:
    """All rungs above the stock class: whole logits, chosen positions, chunks, drop-ins."""
    packed = [rung for rung in rungs(work.shape.is_causal) if rung.attention is None]
    assert len(packed) == (5 if work.shape.is_causal else 6)
    losses = []
    for rung in packed:
        opened = open_rung(work, rung)
        losses.append(float(opened.train_step()))
        opened.close()
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


def test_full_rows_hold_the_documents_in_order(work: Workload) -> None:
    documents = work.documents(2)
    rows = full_rows(documents, 64)
    joined = np.concatenate(documents)
    assert rows.shape == (len(joined) // 64, 64)
    assert np.array_equal(rows.ravel(), joined[: rows.size])
    last = 101 if work.shape.family == "bert" else None
    assert all(document[0] == last for document in documents if last)


def test_batches_of_like_length_span_all_lengths() -> None:
    examples = [{"input_ids": [0] * length} for length in (5, 1, 8, 3, 7, 2, 6, 4)]
    chosen = [len(example["input_ids"]) for example in hf_trainer.like_lengths(examples, 2, 3)]
    assert chosen in ([1, 2, 3, 4, 7, 8], [1, 2, 5, 6, 7, 8])


def test_tokens_are_counted_before_they_are_padded() -> None:
    tokens: list[int] = []
    collate = hf_trainer.CountedTokens(lambda examples: {"rows": len(examples)}, tokens)
    assert collate([{"input_ids": [1, 2, 3]}, {"input_ids": torch.ones(2)}]) == {"rows": 2}
    collate([{"input_ids": [1]}])
    assert tokens == [5, 1]


@pytest.mark.skipif(not HAS_TRAINER, reason="needs accelerate (make benchmarks-setup)")
def test_steps_of_the_trainer_have_the_tokens_of_their_batches(work: Workload) -> None:
    examples = hf_trainer.causal_examples(np.ones((12, 8), np.int64))
    settings = hf_trainer.TrainerSettings(2, work.hardware)
    collate = hf_trainer.stacking_collator()
    run = hf_trainer.run_trainer(our_training.stock_model(work, "sdpa"), examples, collate, settings, 3)
    assert run.tokens[:3] == [16, 16, 16]


def test_a_side_needs_memory(corpus: Path) -> None:
    """In this process, which has had its peak elsewhere: only that it runs."""
    work = Workload(GPT, corpus, 4, Hardware(), same_rows=True)
    names = [name for name in peak_memory.SIDES if HAS_TRAINER or not name.startswith("HF")]
    for name in names:
        assert np.isfinite(peak_memory.SIDES[name](work if "padded" not in name else replace(work, shape=BERT)))


def test_a_workload_travels_to_another_process(work: Workload) -> None:
    assert workload.workload_from_json(workload.workload_to_json(work)) == work


def test_a_clock_without_steps_after_the_warmup_has_nothing_to_say() -> None:
    clock = StepClock("cpu")
    clock.tick()
    with pytest.raises(ValueError, match="1 steps, of which 1 to warm up: there is nothing to time"):
        clock.seconds_a_step(1)
    clock.tick()
    assert clock.seconds_a_step(1) >= 0


def test_a_signal_ends_the_benchmark_and_not_only_its_training(corpus: Path, monkeypatch) -> None:
    """Training takes SIGTERM for a request to stop, and returns."""
    begin_step = module.PretrainModule._begin_step

    def stopped(self, batch) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        begin_step(self, batch)

    monkeypatch.setattr(module.PretrainModule, "_begin_step", stopped)
    with pytest.raises(SystemExit) as ended:
        our_training.seconds_a_step_of_training(Workload(BERT, corpus, 4, Hardware()).config(), 3)
    assert ended.value.code == 128 + signal.SIGTERM
