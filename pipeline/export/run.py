"""The story of an export: find the checkpoint of a run, check it against its corpus, hand it on, note the event."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.base.logs import get_logger
from pipeline.checkpoints.meta import CheckpointMeta, read_meta
from pipeline.config.derived import corpora_of
from pipeline.config.loading import load_run_config
from pipeline.data.corpora import files_at
from pipeline.export.checkpoint_weights import WAY_OUT, find_checkpoint, read_finite_weights
from pipeline.export.hf import ExportReport, check_output, export_model
from pipeline.export.model_card import RunFacts
from pipeline.monitor.events import append_event
from pipeline.monitor.json_lines import number
from pipeline.monitor.sinks import read_metrics, terms_of
from pipeline.shards.files import CorpusFiles
from pipeline.shards.manifest import Manifest, check_tokenizer, read_manifest


def export_run(
    run_directory: Path,
    output: Path,
    step: int | None = None,
    *,
    corpus: str | Path | None = None,
    part: str | None = None,
) -> ExportReport:
    """Export a checkpoint of a run; nothing is published unless it passes the gate.

    Args:
        output: a new (or empty) directory.
        step: default: the newest checkpoint.
        corpus: where the run's corpus is now; default: ``data.corpus`` of the run's config.
        part: ``discriminator`` (default) or ``generator`` of a run of replaced-token detection.

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
    meta = read_meta(checkpoint, WAY_OUT)
    files = files_at(corpus if corpus is not None else corpora_of(config)[0].corpus, config.data.cache)
    if not files.is_remote and not Path(files.location).is_dir():
        raise UserError(
            f"export: the run's corpus is not at {files.location} (from {Path.cwd()}). "
            "Say where it is with --corpus DIR."
        )
    manifest = read_manifest(files)
    _check_corpus(files, manifest, meta, checkpoint)
    weights = read_finite_weights(checkpoint)
    facts = run_facts(run_directory, step, meta, manifest)
    report = export_model(weights, config, files, manifest, output, facts, checkpoint, part)
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


def run_facts(run_directory: Path, step: int, meta: CheckpointMeta, manifest: Manifest) -> RunFacts:
    """What the model card says of the run, as of ``step``."""
    metrics = [record for record in read_metrics(run_directory) if int(record["step"]) <= step]
    trained = [record for record in metrics if number(record.get("loss")) is not None]
    validations = [record for record in metrics if number(record.get("validation_loss")) is not None]
    train = manifest.splits.get("train")
    return RunFacts(
        run_name=run_directory.resolve().name,
        step=step,
        tokens_seen=meta.tokens_seen,
        strategy=meta.strategy,
        world_size=meta.world_size,
        training_loss=number(trained[-1]["loss"]) if trained else None,
        validation_loss=number(validations[-1]["validation_loss"]) if validations else None,
        validation_step=int(validations[-1]["step"]) if validations else None,
        training_terms=terms_of(trained[-1], "loss_") if trained else {},
        validation_terms=terms_of(validations[-1], "validation_loss_") if validations else {},
        corpus_fingerprint=manifest.fingerprint,
        corpus_documents=None if train is None else int(train.documents.sum()),
        corpus_tokens=None if train is None else int(train.tokens.sum()),
        sources=[str(source["name"]) for source in manifest.sources if source.get("name")],
        versions=meta.facts.get("versions", {}),
    )


def _check_corpus(files: CorpusFiles, manifest: Manifest, meta: CheckpointMeta, checkpoint: Path) -> None:
    trained_on = meta.identity.get("corpus_fingerprint")
    if trained_on is not None and trained_on != manifest.fingerprint:
        raise UserError(
            f"export: {checkpoint} was trained on the corpus with fingerprint {trained_on}, but {files.location} has "
            f"{manifest.fingerprint}. Say where the run's corpus is now with --corpus DIR."
        )
    check_tokenizer(files, manifest)
