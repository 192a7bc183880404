"""Every objective and every family: 200 steps of a tiny model on two ranks under ZeRO-1, killed and resumed on the way,
end below what the frequencies of words explain; the export loads with transformers alone and has that loss there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoints.meta import list_checkpoints
from pipeline.cli import main
from pipeline.export.run import export_run
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from pipeline.train.module import PretrainModule
from tests.rankpool import RankPool
from tests.runs import metrics_of, run_rank, weights_of

STEPS = 200
SMALL = ["--documents", "3000", "--vocab_size", "32", "--length", "24", "--sentence_length", "8"]
SETTINGS = f"""
data: {{sequence_length: 64}}
model: {{hidden_size: 64, num_layers: 2, num_heads: 4, intermediate_size: 128, max_positions: 64, hidden_dropout: 0.0}}
optimizer: {{learning_rate: 5e-3}}
schedule: {{warmup_steps: 20}}
train: {{steps: {STEPS}, global_batch_size: 16, micro_batch_size: 8, strategy: zero1, device: cpu, precision: fp32,
        threads_per_rank: 1}}
checkpoint: {{every_steps: 150, keep_last: 3}}
evaluation: {{every_steps: 0, rows: 64}}
monitor: {{log_every_steps: 20, wandb: "off"}}
"""


@dataclass(frozen=True)
class Kind:
    """A family with an objective."""

    family: str
    objective: str
    style: str = "bert"
    overrides: tuple[str, ...] = ()
    words: str = "validation_loss"
    """Metric with the loss of words, in nats."""

    auto_class: str = "AutoModelForMaskedLM"

    part: str | None = None
    """What of it is exported."""

    teacher: bool = False
    """Whether a BERT of 60 steps teaches it."""

    def __str__(self) -> str:
        return f"{self.family} {self.objective}"


def packed(packing: str) -> tuple[str, ...]:
    return ("--data.packing", packing)


# So small a model learns beside a loss of fifty times its weight no word in 200 steps.
ALIKE = ("--model.generator_size", "1.0", "--objective.discriminator_weight", "1.0")
WIDE = ("--model.intermediate_size", "256")
KINDS = (
    Kind("bert", "mlm"),
    Kind("bert", "mlm+nsp", overrides=packed("pairs_nsp"), words="validation_loss_mlm"),
    Kind("roberta", "mlm", "roberta"),
    Kind("albert", "mlm+sop", overrides=packed("pairs_sop"), words="validation_loss_mlm"),
    Kind("distilbert", "mlm"),
    Kind("electra", "rtd", words="validation_loss_mlm", overrides=ALIKE, part="generator"),
    Kind("modernbert", "mlm", overrides=("--model.extra", "{local_attention: 16}")),
    Kind("bart", "denoise", "roberta", auto_class="AutoModelForSeq2SeqLM"),
    Kind("gpt2", "clm", "gpt2", auto_class="AutoModelForCausalLM"),
    Kind("openai-gpt", "clm", "gpt2", (*packed("one_document"), *WIDE), auto_class="AutoModelForCausalLM"),
    Kind("distilbert", "distil", words="validation_loss_mlm", teacher=True),
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By style: sentences of eight consecutive words, shuffled, so that what stands around a word tells of it."""
    root = tmp_path_factory.mktemp("corpora")
    for style in ("bert", "roberta", "gpt2"):
        config = root / f"{style}.yaml"
        config.write_text(
            f"kind: shuffle\nrun_length: 8\nstyle: {style}\nshards: {{sentences: true, validation_share: 0.1}}\n"
        )
        command = ["corpus", "synthesize", str(config), "--output", str(root / style), "--processes", "1"]
        assert main([*command, *SMALL]) == 0
    return {style: root / style for style in ("bert", "roberta", "gpt2")}


def _killed_at(config_path: str, overrides: list[str], step: int) -> None:
    """Train; the last rank dies when ``step`` begins."""
    begin = PretrainModule._begin_step

    def dies(self: PretrainModule, batch: Any) -> None:
        if self.step == step and os.environ["RANK"] == "1":
            os._exit(9)
        begin(self, batch)

    PretrainModule._begin_step = dies  # type: ignore[method-assign]
    run_rank(config_path, overrides)


_STRANGER = """
import json, sys
import torch, transformers
MORE = ("decoder_input_ids", "token_type_ids")
request = json.load(open(sys.argv[1]))
model = getattr(transformers, request["auto_class"]).from_pretrained(request["folder"])
total = count = 0
with torch.no_grad():
    for ids, labels in zip(request["inputs"], request["labels"]):
        more = {name: torch.tensor([request[name].pop(0)]) for name in MORE if request[name]}
        logits = model(input_ids=torch.tensor([ids]), **more).logits[0]
        labels = torch.tensor(labels)
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100))
        count += int((labels != -100).sum())
assert not [name for name in sys.modules if name.split(".")[0] == "pipeline"]
print(json.dumps(total / count))
"""


def loss_of_a_stranger(kind: Kind, config_path: Path, overrides: list[str], folder: Path, directory: Path) -> float:
    """Mean loss of words over the validation rows, segment by segment, in a process that has transformers alone."""
    from pipeline.base.ranks import RankFacts
    from pipeline.config.derived import batch_plan
    from pipeline.config.loading import load_run_config
    from pipeline.train.streams import open_streams

    config = load_run_config(config_path, [*overrides, "--train.strategy", "single"])
    batches = open_streams(config).validation_batches(0, batch_plan(config, 1), RankFacts())
    request: dict[str, Any] = {"auto_class": kind.auto_class, "folder": str(folder)}
    request |= {"inputs": [], "labels": [], "decoder_input_ids": [], "token_type_ids": []}
    for batch in batches:
        labels = torch.full((batch.input_ids.numel(),), -100)
        labels[batch.prediction_positions] = batch.labels
        seq2seq = batch.decoder_cu_seqlens is not None
        bounds = batch.decoder_cu_seqlens if seq2seq else batch.cu_seqlens
        for number, (begin, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            if end > begin and bool((labels[begin:end] != -100).any()):
                first, last = batch.cu_seqlens[number : number + 2].tolist()
                request["inputs"].append(batch.input_ids.flatten()[first:last].tolist())
                request["labels"].append(labels[begin:end].tolist())
                if batch.token_type_ids is not None:
                    request["token_type_ids"].append(batch.token_type_ids.flatten()[first:last].tolist())
                if seq2seq:
                    request["decoder_input_ids"].append(batch.decoder_input_ids.flatten()[begin:end].tolist())
    path = directory / "request.json"
    path.write_text(json.dumps(request))
    script = directory / "stranger.py"
    script.write_text(_STRANGER)
    answer = subprocess.run([sys.executable, "-I", str(script), str(path)], capture_output=True, text=True, check=True)
    return float(json.loads(answer.stdout))


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_learns_survives_and_leaves(
    kind: Kind, corpora: dict[str, Path], rank_pool: RankPool, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    text = SETTINGS.replace("data: {", f"data: {{corpus: {corpora[kind.style]}, ")
    config.write_text(f"run_directory: {tmp_path / 'run'}\n{text}")
    overrides = ["--model.family", kind.family, "--objective.name", kind.objective, *kind.overrides]
    if kind.teacher:
        teacher = tmp_path / "teacher.yaml"
        teacher.write_text(config.read_text().replace(str(tmp_path / "run"), str(tmp_path / "teacher")))
        rank_pool.run(run_rank, str(teacher), ["--train.steps", "60"], world_size=2, timeout_seconds=300)
        export_run(tmp_path / "teacher", tmp_path / "taught")
        overrides += ["--objective.teacher", str(tmp_path / "taught")]
    rank_pool.run(run_rank, str(config), overrides, world_size=2, timeout_seconds=300)
    undisturbed = (tmp_path / "run").rename(tmp_path / "undisturbed")
    shutil.copytree(undisturbed, tmp_path / "run", ignore=shutil.ignore_patterns(f"step-*{STEPS}", "metrics.jsonl"))
    with pytest.raises(Exception, match="died with status 9"):
        rank_pool.run(_killed_at, str(config), overrides, 160, world_size=2, timeout_seconds=300)
    assert list_checkpoints(tmp_path / "run") == [150]
    rank_pool.run(run_rank, str(config), overrides, world_size=2, timeout_seconds=300)
    weights, expected = (weights_of(directory, STEPS) for directory in (tmp_path / "run", undisturbed))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    entropy = read_manifest(LocalFiles(corpora[kind.style])).extra["validation_unigram_entropy"]
    found = metrics_of(tmp_path / "run")[-1][kind.words]
    assert found < entropy - 0.2, (found, entropy)
    export_run(tmp_path / "run", tmp_path / "hf", part=kind.part)
    theirs = loss_of_a_stranger(kind, config, overrides, tmp_path / "hf", tmp_path)
    assert np.isclose(theirs, found, rtol=1e-4)
