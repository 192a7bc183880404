"""Tiny corpora and runs to export: of every kind of model, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from pipeline.base.files import sha256_of_file
from pipeline.checkpoints.meta import CheckpointMeta
from pipeline.checkpoints.pieces import Piece, rank_file_name
from pipeline.config.derived import head_of
from pipeline.config.loading import to_yaml
from pipeline.config.run import (
    PAIR_OBJECTIVES,
    DataConfig,
    Family,
    ModelConfig,
    ObjectiveName,
    RunConfig,
    RunObjectiveConfig,
    TrainConfig,
)
from pipeline.monitor.json_lines import encode_line
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import Manifest, ShardTable, read_manifest, write_manifest
from pipeline.shards.writer import ShardWriter
from tests.unit.checkpoints.checkpoint_files import write_meta, write_rank_file

NUM_DOCUMENTS = 40
SEQUENCE_LENGTH = 32


def family_and_objective(kind: str) -> tuple[Family, ObjectiveName]:
    """Of ``bert``, say, or ``bert+nsp``."""
    family, _, pairs = kind.partition("+")
    objective = f"mlm+{pairs}" if pairs else {"gpt2": "clm", "bart": "denoise"}.get(family, "mlm")
    return cast("Family", family), cast("ObjectiveName", objective)


def make_tokenizer(family: Family) -> Any:
    """A stock tokenizer with single characters as its vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import BertTokenizer, GPT2Tokenizer, RobertaTokenizer

    letters = [chr(ord("a") + number) for number in range(26)]
    if family in ("bert", "distilbert", "albert", "modernbert"):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = [*special, *letters, *(f"##{letter}" for letter in letters), "the", "whale", "."]
        return BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, do_lower_case=True)
    alphabet = sorted(ByteLevel.alphabet())
    if family in ("roberta", "bart"):
        vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, "<mask>"]
        return RobertaTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[])
    return GPT2Tokenizer(vocab={token: number for number, token in enumerate([*alphabet, "<|endoftext|>"])}, merges=[])


def make_corpus(directory: Path, kind: str, seed: int = 0) -> Manifest:
    """A corpus of random documents, of two sentences each, with a real tokenizer beside them."""
    tokenizer = make_tokenizer(family_and_objective(kind)[0])
    tokenizer.save_pretrained(directory / "tokenizer")
    special = sorted(set(tokenizer.all_special_ids))
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    text_ids = np.setdiff1d(np.arange(vocab_size), special)
    generator = np.random.default_rng(seed)
    tables = {}
    for split in ("train", "validation"):
        writer = ShardWriter(directory / split / "00000.tar", np.dtype("<u2"), block_tokens=500)
        for number in range(NUM_DOCUMENTS):
            tokens = generator.choice(text_ids, generator.integers(3, 50)).astype(np.uint16)
            writer.add(f"{split}/{number}", tokens, np.array([0, len(tokens) // 2]))
        tables[split] = ShardTable.from_facts([writer.close()])
    names = ("pad", "cls", "sep", "mask", "bos", "eos", "unk")
    write_manifest(
        directory,
        Manifest(
            tokenizer_fingerprint=sha256_of_file(directory / "tokenizer" / "tokenizer.json"),
            vocab_size=vocab_size,
            special_ids={name: getattr(tokenizer, f"{name}_token_id") for name in names},
            all_special_ids=special,
            splits=tables,
            has_sentences=True,
            sources=[{"name": "random letters", "path": "nowhere"}],
        ),
    )
    return read_manifest(LocalFiles(directory))


def run_config(run_directory: Path, corpus: Path, kind: str) -> RunConfig:
    family, objective = family_and_objective(kind)
    packing = PAIR_OBJECTIVES.get(objective, "best_fit")
    return RunConfig(
        run_directory=str(run_directory),
        data=DataConfig(corpus=str(corpus), sequence_length=SEQUENCE_LENGTH, packing=packing, open_shards=1),
        model=ModelConfig(
            family=family,
            hidden_size=32,
            num_layers=2,
            num_heads=2,
            intermediate_size=64,
            max_positions=48,
            initializer_range=0.2,  # logits of a few units: a wrong position or mask is no rounding error
        ),
        objective=RunObjectiveConfig(name=objective),
        train=TrainConfig(steps=400, global_batch_size=8, precision="fp32", strategy="single", device="cpu"),
    )


def save_step(config: RunConfig, manifest: Manifest, step: int, fingerprint: str | None = None) -> Path:
    """A checkpoint as `pretrain train` leaves one, with random weights of that step."""
    from pipeline.models.build import build_model

    model = build_model(
        config.model,
        vocab_size=manifest.vocab_size,
        special_ids=manifest.special_ids,
        head=head_of(config),
        seed=step,
    )
    directory = Path(config.run_directory) / "checkpoints" / f"step-{step:08d}"
    directory.mkdir(parents=True)
    meta = CheckpointMeta(
        step=step,
        tokens_seen=step * 256,
        strategy="zero1",
        precision="fp32",
        world_size=2,
        identity={"corpus_fingerprint": fingerprint or manifest.fingerprint},
        facts={"versions": {"torch": "2.13"}},
    )
    write_meta(directory, meta)
    write_weights(directory, {name: tensor.detach() for name, tensor in model.named_parameters()})
    write_rank_file(directory / rank_file_name(1), [])
    return directory


def write_weights(checkpoint: Path, weights: Mapping[str, Tensor]) -> None:
    """Give a checkpoint other weights, all of them in the file of rank 0."""
    path = checkpoint / rank_file_name(0)
    path.unlink(missing_ok=True)
    write_rank_file(path, [Piece(f"weight/{name}", tuple(value.shape), 0, value) for name, value in weights.items()])


def make_run(run_directory: Path, corpus: Path, kind: str, steps: tuple[int, ...] = (100, 200)) -> RunConfig:
    """A run directory with config, metrics and checkpoints."""
    config = run_config(run_directory, corpus, kind)
    manifest = read_manifest(LocalFiles(corpus))
    for step in steps:
        save_step(config, manifest, step)
    run_directory.mkdir(exist_ok=True)
    (run_directory / "config.yaml").write_text(to_yaml(config))
    records = [
        {"step": 100, "loss": 5.5, "validation_loss": 5.25},
        {"step": 200, "loss": 4.5},
        {"step": 300, "loss": 3.5, "validation_loss": 3.25},
    ]
    (run_directory / "metrics.jsonl").write_bytes(b"".join(map(encode_line, records)))
    return config


def read_config(export: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((export / "config.json").read_text())
    return value
