"""Export of a checkpoint as a Hugging Face model: ``save_pretrained`` of the stock class, published behind a gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.files import directory_made_whole, read_json
from pipeline.base.logs import get_logger
from pipeline.config.loading import load_run_config
from pipeline.config.run import RunConfig
from pipeline.export.checkpoint_weights import META_NAME, find_checkpoint, load_strictly, read_weights
from pipeline.export.gate import GateResult, auto_class, compare, gate_segments
from pipeline.export.model_card import ModelFacts, RunFacts, model_card
from pipeline.export.tokenizer_files import copy_tokenizer
from pipeline.models.build import build_model, hf_config
from pipeline.models.families import FAMILIES
from pipeline.monitor.events import append_event
from pipeline.monitor.json_lines import number
from pipeline.monitor.sinks import read_metrics
from pipeline.shards.manifest import Manifest, check_tokenizer, read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ExportReport:
    """A published export."""

    path: Path
    step: int
    max_abs_logit_difference: float
    """Between the trained and the exported model; in float32 unless ``dtype`` says float64 (see ``gate.compare``)."""
    num_parameters: int
    class_name: str
    dtype: str = "float32"
    num_tokens_compared: int = 0


def export_run(
    run_directory: Path, output: Path, step: int | None = None, *, corpus: Path | None = None
) -> ExportReport:
    """Export a checkpoint of a run; nothing is published unless it passes the gate.

    Args:
        output: a new (or empty) directory.
        step: default: the newest checkpoint.
        corpus: where the run's corpus is now; default: ``data.corpus`` of the run's config.

    Raises:
        UserError: no such run, checkpoint or step; ``output`` exists; the checkpoint is damaged or does not fit the
            config; the corpus is another one; or the exported model differs from the trained one.
    """
    if not (run_directory / "config.yaml").is_file():
        raise UserError(
            f"export: {run_directory} holds no run (no config.yaml). Give the run_directory of a training run."
        )
    check_output(output)
    step, checkpoint = find_checkpoint(run_directory, step)
    config = load_run_config(run_directory / "config.yaml")
    meta = read_json(checkpoint / META_NAME, "checkpoint")
    corpus = corpus if corpus is not None else Path(config.data.corpus)
    manifest = read_manifest(corpus)
    _check_corpus(corpus, manifest, meta, checkpoint)
    weights = read_weights(checkpoint)
    facts = run_facts(run_directory, step, meta, manifest)
    report = export_model(weights, config, corpus, manifest, output, facts, checkpoint)
    try:
        append_event(
            run_directory,
            "exported",
            step=step,
            path=str(output),
            max_abs_logit_difference=report.max_abs_logit_difference,
        )
    except OSError as error:  # Someone else's run, readable only: the export is good all the same.
        get_logger("export").warning("the export is not noted in %s/events.jsonl: %s", run_directory, error.strerror)
    return report


def export_model(
    weights: Mapping[str, Tensor],
    config: RunConfig,
    corpus: Path,
    manifest: Manifest,
    output: Path,
    facts: RunFacts,
    checkpoint: Path,
) -> ExportReport:
    """Write ``output`` from weights: model, tokenizer, model card; compare, and only then give it its name.

    Args:
        weights: fp32 tensors under the names that ``save_pretrained`` writes, tied ones once.
        checkpoint: where they come from, for messages.

    Raises:
        UserError: as :func:`export_run`.
    """
    check_output(output)
    shape = config.model
    trained = build_model(shape, vocab_size=manifest.vocab_size, special_ids=manifest.special_ids).float().eval()
    load_strictly(trained, weights, checkpoint)
    with directory_made_whole(output) as directory:
        save_stock(weights, config, manifest, directory)
        copy_tokenizer(corpus, directory, max_length=min(shape.max_positions, config.data.sequence_length))
        result = compare(trained, directory, gate_segments(corpus, manifest, config), manifest)
        card = model_card(config, facts, _model_facts(trained, result))
        (directory / "README.md").write_text(card, encoding="utf-8")
    return ExportReport(
        path=output,
        step=facts.step,
        max_abs_logit_difference=result.max_abs_logit_difference,
        num_parameters=result.num_parameters,
        class_name=result.class_name,
        dtype=result.dtype,
        num_tokens_compared=result.num_tokens,
    )


def save_stock(weights: Mapping[str, Tensor], config: RunConfig, manifest: Manifest, directory: Path) -> None:
    """``save_pretrained`` of the stock class with these weights.

    The class is made without storage and takes the given tensors: a weight that is not given cannot be written with an
    initial value.
    """
    import transformers

    hf = hf_config(config.model, vocab_size=manifest.vocab_size, special_ids=manifest.special_ids)
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[config.model.family].model_class)(hf)
    model.load_state_dict(dict(weights), strict=False, assign=True)
    model.tie_weights()
    assert not [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if model.can_generate() and model.generation_config.pad_token_id is None:
        # Generation pads finished sequences of a batch; without an id it warns at every call.
        model.generation_config.pad_token_id = model.generation_config.eos_token_id
    with _quiet_transformers():
        model.save_pretrained(directory)


def check_output(output: Path) -> None:
    """Refuse to write over anything.

    Raises:
        UserError: ``output`` is a file, or a directory with something in it.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"export: {output} exists and is not empty. Name a new directory with --output, or remove it.")


def run_facts(run_directory: Path, step: int, meta: Mapping[str, Any], manifest: Manifest) -> RunFacts:
    """What the model card says of the run, as of ``step``."""
    metrics = [record for record in read_metrics(run_directory) if int(record["step"]) <= step]
    losses = [value for record in metrics if (value := number(record.get("loss"))) is not None]
    validations = [
        (value, int(record["step"]))
        for record in metrics
        if (value := number(record.get("validation_loss"))) is not None
    ]
    validation_loss, validation_step = validations[-1] if validations else (None, None)
    train = manifest.splits.get("train")
    facts = meta.get("facts") or {}
    return RunFacts(
        run_name=run_directory.resolve().name,
        step=step,
        tokens_seen=meta.get("tokens_seen"),
        strategy=meta.get("strategy"),
        world_size=meta.get("world_size"),
        training_loss=losses[-1] if losses else None,
        validation_loss=validation_loss,
        validation_step=validation_step,
        corpus_fingerprint=manifest.fingerprint,
        corpus_documents=None if train is None else int(train.documents.sum()),
        corpus_tokens=None if train is None else int(train.tokens.sum()),
        sources=[str(source["name"]) for source in manifest.sources if source.get("name")],
        versions=facts.get("versions") or {},
    )


def _check_corpus(corpus: Path, manifest: Manifest, meta: Mapping[str, Any], checkpoint: Path) -> None:
    trained_on = (meta.get("identity") or {}).get("corpus_fingerprint", meta.get("corpus_fingerprint"))
    if trained_on is not None and trained_on != manifest.fingerprint:
        raise UserError(
            f"export: {checkpoint} was trained on the corpus with fingerprint {trained_on}, but {corpus} has "
            f"{manifest.fingerprint}. Give the corpus of the run with --corpus."
        )
    check_tokenizer(corpus, manifest)


def _model_facts(model: PreTrainedModel, result: GateResult) -> ModelFacts:
    return ModelFacts(
        class_name=result.class_name,
        auto_class=auto_class(model.config.model_type),
        num_parameters=result.num_parameters,
        vocab_size=int(model.config.vocab_size),
        mask_token=result.mask_token,
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no information lines inside; transformers' settings are as before after it."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
