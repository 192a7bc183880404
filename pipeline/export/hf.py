"""Export of a checkpoint as a Hugging Face model: ``save_pretrained`` of the stock class, published behind a gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.files import directory_made_whole
from pipeline.config.derived import has_generator, head_of
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head
from pipeline.config.run import RunConfig
from pipeline.config.stages import stages_of
from pipeline.export.checkpoint_weights import load_strictly
from pipeline.export.gate import GateResult, auto_class, compare, gate_segments
from pipeline.export.model_card import ModelFacts, RunFacts, model_card
from pipeline.export.tokenizer_files import copy_tokenizer
from pipeline.models.build import build_model, hf_config, stock_state_dict
from pipeline.models.electra import PARTS, part_of
from pipeline.models.families import generator_config, model_class_name
from pipeline.shards.files import CorpusFiles
from pipeline.shards.manifest import Manifest

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

    def facts(self) -> dict[str, str | int | float]:
        """The report as JSON has it."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def export_model(
    weights: Mapping[str, Tensor],
    config: RunConfig,
    files: CorpusFiles,
    manifest: Manifest,
    output: Path,
    facts: RunFacts,
    checkpoint: Path,
    part: str | None = None,
) -> ExportReport:
    """Write ``output`` from weights: model, tokenizer, model card; compare, and only then give it its name.

    Args:
        files: of the run's corpus.
        weights: fp32 tensors under the names that ``save_pretrained`` writes, tied ones once.
        checkpoint: where they come from, for messages.
        part: of a run that trains two models; default: the one it is trained for.

    Raises:
        UserError: ``output`` exists, there is no such part, the weights do not fit, or the gate refuses.
    """
    check_output(output)
    shape, head = exported_model(config, part)
    if has_generator(config):
        weights = part_of(weights, part or PARTS[0])
    trained = build_model(shape, vocab_size=manifest.vocab_size, special_ids=manifest.special_ids, head=head)
    load_strictly(trained.float().eval(), weights, checkpoint)
    with directory_made_whole(output) as directory:
        save_stock(stock_state_dict(trained), shape, head, manifest, directory)
        copy_tokenizer(files, directory, max_length=stages_of(config).longest_row(facts.step))
        result = compare(trained, directory, gate_segments(files, manifest, config, facts.step), manifest)
        card = model_card(config, facts, _model_facts(trained, result, shape, part))
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


def exported_model(config: RunConfig, part: str | None) -> tuple[ModelConfig, Head]:
    """Shape and head of the stock model that an export is.

    Raises:
        UserError: the run does not train such a part.
    """
    if not has_generator(config):
        if part is not None:
            names = "`, `".join(task.name for task in config.objective.tasks)
            raise UserError(f"export: --part {part}: a run of objective `{names}` trains one model; leave it out.")
        return config.model, head_of(config)
    if part == "generator":
        return generator_config(config.model), "tokens"
    return config.model, "discriminator"


def save_stock(
    weights: Mapping[str, Tensor], shape: ModelConfig, head: Head, manifest: Manifest, directory: Path
) -> None:
    """``save_pretrained`` of the stock class with these weights.

    The class is made without storage and takes the given tensors: a weight that is not given cannot be written with an
    initial value.
    """
    import transformers

    hf = hf_config(shape, vocab_size=manifest.vocab_size, special_ids=manifest.special_ids, head=head)
    with torch.device("meta"):
        model = getattr(transformers, model_class_name(shape, head))(hf)
    model.load_state_dict(_by_every_name(model, weights), strict=False, assign=True)
    model.tie_weights()
    assert not [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if model.can_generate() and model.generation_config.pad_token_id is None:
        # Generation pads finished sequences of a batch; without an id it warns at every call.
        model.generation_config.pad_token_id = model.generation_config.eos_token_id
    with _quiet_transformers():
        model.save_pretrained(directory)


def _by_every_name(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with tied ones under all their names: transformers ties from one of them, which the first in the
    order of the modules, by which we know a weight, need not be (XLM-RoBERTa)."""
    names_of: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names_of.setdefault(id(tensor), []).append(name)
    named = dict(weights)
    for names in names_of.values():
        given = [weights[name] for name in names if name in weights]
        named |= dict.fromkeys(names, given[0]) if given else {}
    return named


def check_output(output: Path) -> None:
    """Refuse to write over anything.

    Raises:
        UserError: ``output`` is a file, or a directory with something in it.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"export: {output} exists and is not empty. Name a new directory with --output, or remove it.")


def _model_facts(model: PreTrainedModel, result: GateResult, shape: ModelConfig, part: str | None) -> ModelFacts:
    return ModelFacts(
        class_name=result.class_name,
        auto_class=auto_class(model),
        num_parameters=result.num_parameters,
        vocab_size=int(model.config.vocab_size),
        mask_token=result.mask_token,
        shape=shape,
        is_generator=part == "generator",
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
