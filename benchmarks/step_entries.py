"""The entries of `benchmarks/step.py`.

Letters: R rows of a step, S sequence length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from benchmarks.correctness import check_numbers
from benchmarks.equal_steps import assert_same_training
from benchmarks.ladder import measure_ladder, rungs
from benchmarks.machine import interleaved, medians
from benchmarks.our_training import OurStep, seconds_a_step_of_training, stock_model
from benchmarks.peak_memory import measure_side
from benchmarks.peers import hf_trainer
from benchmarks.peers.plain_gpt import PlainGpt, PlainLoop, load_gpt2, padded_vocabulary
from benchmarks.record import Goal, Result, Table, significant
from benchmarks.step import Findings, Scale
from benchmarks.workload import Workload, full_rows

Contender = Callable[[], float]
"""Measures once: real tokens a second."""

_DOCUMENT_STEPS: Final = 60
"""Steps of ours whose documents the peers are given."""

_LIKE_LENGTHS_BATCHES: Final = 5


def measure_bert(scale: Scale) -> Findings:
    """`bert_padded` and `bert_full_rows`."""
    work = scale.bert
    check_numbers(work, ["fp32"])
    assert_same_training(work, scale.with_trainer)
    contenders: dict[str, Contender] = {
        "ours": _our_training(work, scale),
        "ours, not compiled": _our_training(work, scale, compile=False),
        "ours, same rows": _our_training(replace(work, same_rows=True), scale),
    }
    if scale.with_trainer:
        contenders |= _bert_trainers(scale)
    speeds = medians(interleaved(contenders, scale.rounds, "bert, real tokens/s"))
    return Findings(bert_results(speeds), {"bert": _speeds(speeds)})


def bert_results(speeds: Mapping[str, float]) -> list[Result]:
    """Ours against the scripts as they are, and as they are once compiled."""
    ours, padded, full = speeds["ours"], _named(speeds, "HF Trainer, padded"), _named(speeds, "HF Trainer, full")
    return [
        _result("bert_padded", ours, padded, 5.0),
        _result("bert_padded, neither compiled", speeds["ours, not compiled"], padded),
        _result("bert_padded, the Trainer compiled too", ours, _named(speeds, "HF Trainer compiled, padded")),
        _result("bert_padded, documents of like length together", ours, _named(speeds, "HF Trainer, documents")),
        _result("bert_full_rows", ours, full, 1.7),
        _result("bert_full_rows, the Trainer compiled too", ours, _named(speeds, "HF Trainer compiled, full")),
        _result("bert_full_rows, ours on the same rows too", speeds["ours, same rows"], full),
    ]


def _bert_trainers(scale: Scale) -> dict[str, Contender]:
    work, length = scale.bert, scale.bert.shape.sequence_length
    documents = work.documents(_DOCUMENT_STEPS)
    examples = hf_trainer.masked_examples(documents)
    rows = hf_trainer.masked_examples(list(full_rows(documents, length)))
    to_longest = hf_trainer.masking_collator(work.shape.vocab_size)
    to_length = hf_trainer.masking_collator(work.shape.vocab_size, pad_to_multiple_of=length)
    # The batch of the first step is not timed; it is the one of the longest documents.
    like = hf_trainer.like_lengths(examples, work.num_rows, _LIKE_LENGTHS_BATCHES)
    like = [*like[-work.num_rows :], *like]
    return {
        f"HF Trainer, padded to {length}": _trainer(scale, work, examples, to_length),
        "HF Trainer, padded to the longest of a batch": _trainer(scale, work, examples, to_longest),
        "HF Trainer, documents of like length together": _trainer(
            scale, work, like, to_longest, steps=_LIKE_LENGTHS_BATCHES, in_order=True
        ),
        "HF Trainer, full rows": _trainer(scale, work, rows, to_longest),
        f"HF Trainer compiled, padded to {length}": _trainer(scale, work, examples, to_length, compile=True),
        "HF Trainer compiled, full rows": _trainer(scale, work, rows, to_longest, compile=True),
    }


def measure_gpt(scale: Scale) -> Findings:
    """`gpt_full_rows` and `gpt_plain_loop`."""
    work = scale.gpt
    same = replace(work, same_rows=True)
    check_numbers(work, ["fp32"])
    assert_same_training(work, scale.with_trainer)
    documents = work.documents(_DOCUMENT_STEPS)
    rows = full_rows(documents, work.shape.sequence_length)
    contenders: dict[str, Contender] = {
        "ours": _our_training(work, scale),
        "ours, same rows": _our_training(same, scale),
        "ours, same rows, step by itself": _our_step(same, scale),
        "ours, same rows, step by itself, compiled": _our_step(same, scale, compile=True),
        "plain loop": _plain(scale, rows, compiled=False),
        "plain loop, compiled": _plain(scale, rows, compiled=True),
    }
    if scale.with_trainer:
        for name, compiled in {"HF Trainer, full rows": False, "HF Trainer compiled, full rows": True}.items():
            examples, collate = hf_trainer.causal_examples(rows), hf_trainer.stacking_collator()
            contenders[name] = _trainer(scale, work, examples, collate, compile=compiled)
    speeds = medians(interleaved(contenders, scale.rounds, "gpt, real tokens/s"))
    return Findings(gpt_results(speeds), {"gpt": _speeds(speeds)})


def gpt_results(speeds: Mapping[str, float]) -> list[Result]:
    """As :func:`bert_results`."""
    full = _named(speeds, "HF Trainer, full")
    by_itself = max(speeds["ours, same rows, step by itself"], speeds["ours, same rows, step by itself, compiled"])
    return [
        _result("gpt_full_rows", speeds["ours"], full, 1.3),
        _result("gpt_full_rows, the Trainer compiled too", speeds["ours"], _named(speeds, "HF Trainer compiled, full")),
        _result("gpt_full_rows, ours on the same rows too", speeds["ours, same rows"], full),
        _result("gpt_plain_loop", by_itself, _named(speeds, "plain loop"), 1.0),
        _result("gpt_plain_loop, ours as `pretrain train`", speeds["ours, same rows"], _named(speeds, "plain loop")),
    ]


def measure_peak_memory(scale: Scale) -> Findings:
    """`peak_memory` of each side, in processes of their own."""
    sides = {
        "bert": (scale.bert, ["HF Trainer, padded documents", "HF Trainer, full rows"]),
        "gpt": (replace(scale.gpt, same_rows=True), ["HF Trainer, full rows", "plain loop"]),
    }
    results = []
    for name, (work, peers) in sides.items():
        here = [peer for peer in peers if scale.with_trainer or not peer.startswith("HF")]
        megabytes = {side: measure_side(side, work) for side in ("ours", *here)}
        own = megabytes.pop("ours")
        results.append(Result(f"peak_memory, {name}", "MB", "lower", own, megabytes, Goal(ratio=1.0 if here else None)))
    return Findings(results)


def measure_ladders(scale: Scale) -> Findings:
    """One switch at a time."""

    def time_step(step: OurStep) -> float:
        return step.seconds_a_step(scale.steps)

    return Findings(
        tables={
            f"ladder_{work.shape.family}": measure_ladder(work, rungs(work.shape.is_causal), time_step, scale.rounds)
            for work in (scale.bert, scale.gpt)
        }
    )


def _our_training(work: Workload, scale: Scale, compile: bool = True) -> Contender:
    """`pretrain train`, compiled as in the configs that the project comes with; every repetition sees other rows."""
    seeds = itertools.count()
    tokens = work.real_tokens_a_step()
    return lambda: tokens / seconds_a_step_of_training(work.config(compile=compile), scale.steps, seed=next(seeds))


def _our_step(work: Workload, scale: Scale, **switches: Any) -> Contender:
    step = OurStep(work.config(**switches))
    tokens = work.real_tokens_a_step()
    return lambda: tokens / step.seconds_a_step(scale.steps)


def _plain(scale: Scale, rows: np.ndarray, compiled: bool) -> Contender:
    work = scale.gpt
    model = PlainGpt(work.shape, padded_vocabulary(work.shape.vocab_size))
    load_gpt2(model, stock_model(work, "sdpa").state_dict())
    loop = PlainLoop(model, rows.ravel(), work.num_rows, work.hardware, compiled)
    return lambda: rows[0].size * work.num_rows / loop.seconds_a_step(scale.steps)


def _trainer(
    scale: Scale,
    work: Workload,
    examples: list[dict[str, Any]],
    collate: Any,
    steps: int | None = None,
    in_order: bool = False,
    compile: bool = False,
) -> Contender:
    settings = hf_trainer.TrainerSettings(work.num_rows, work.hardware, compile=compile, in_order=in_order)
    num_steps, seeds = steps or scale.steps, itertools.count()
    mean_tokens = work.num_rows * sum(len(example["input_ids"]) for example in examples) / len(examples)

    def measure() -> float:
        seeded = replace(settings, seed=next(seeds))
        run = hf_trainer.run_trainer(stock_model(work, "sdpa"), examples, collate, seeded, 1 + num_steps)
        # The speed over an epoch is the tokens of a mean step over the time of a mean step. Batches drawn at random,
        # others every time, take nearly one time but hold now twice, now half of the mean: a few say little of it.
        tokens = sum(run.tokens[1 : 1 + num_steps]) / num_steps if in_order else mean_tokens
        return tokens / run.clock.seconds_a_step(1)

    return measure


def _named(speeds: Mapping[str, float], beginning: str) -> dict[str, float]:
    """The peers whose name begins so."""
    return {name: speed for name, speed in speeds.items() if name.startswith(beginning)}


def _result(name: str, ours: float, peers: Mapping[str, float], ratio: float | None = None) -> Result:
    # Without its peers a result has nothing to reach.
    return Result(name, "real tokens/s", "higher", ours, peers, Goal(ratio=ratio if peers else None))


def _speeds(speeds: Mapping[str, float]) -> Table:
    ordered: Sequence[tuple[str, float]] = sorted(speeds.items(), key=lambda item: -item[1])
    return Table(["contender", "real tokens/s"], [[name, significant(speed)] for name, speed in ordered])
