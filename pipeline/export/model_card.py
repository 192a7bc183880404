"""The model card: ``README.md`` of an exported model, from the facts of its run. Pure: facts in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.derived import head_of, is_causal
from pipeline.config.hugging_face import AUTO, max_positions
from pipeline.config.model import ModelConfig
from pipeline.config.optimization import OptimizerConfig, ScheduleConfig, betas_of, epsilon_of, momentum_of
from pipeline.config.run import RunConfig
from pipeline.config.stages import stages_of
from pipeline.export.card_objective import has_several_terms, learned, objective_text
from pipeline.models.forms import is_padded

_FAMILY_NAMES = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "distilbert": "DistilBERT",
    "albert": "ALBERT",
    "electra": "ELECTRA",
    "modernbert": "ModernBERT",
    "bart": "BART",
    "gpt2": "GPT-2",
    "openai-gpt": "GPT",
}

_DISCRIMINATES = "AutoModelForPreTraining"
_RESTORES = "AutoModelForSeq2SeqLM"
_POOLED = ("bert", "roberta", "albert")
"""Families with a pooler that the class of their masked language model lacks."""


@dataclass(frozen=True)
class RunFacts:
    """What a run and its corpus know about themselves; None and empty where unknown."""

    run_name: str
    step: int
    tokens_seen: int | None = None
    strategy: str | None = None
    world_size: int | None = None
    training_loss: float | None = None
    validation_loss: float | None = None
    validation_step: int | None = None
    training_terms: Mapping[str, float] = field(default_factory=dict)
    """``loss_NAME`` of the last logged step, by NAME: terms of the loss, and objectives of a mixture."""

    validation_terms: Mapping[str, float] = field(default_factory=dict)
    """The same of the last evaluation."""

    corpus_fingerprint: str = ""
    corpus_documents: int | None = None
    corpus_tokens: int | None = None
    sources: Sequence[str] = field(default_factory=tuple)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelFacts:
    """What the export itself knows."""

    class_name: str
    auto_class: str
    num_parameters: int
    vocab_size: int
    mask_token: str | None
    shape: ModelConfig | None = None
    """Of the exported model, where it is not that of the run."""

    is_generator: bool = False
    """Whether it is the generator of replaced-token detection."""


def model_card(config: RunConfig, run: RunFacts, model: ModelFacts) -> str:
    """Markdown with YAML front matter. It states no licence: that is for the author of the model to choose."""
    causal = is_causal(config)
    kind = str((config.model.config or {})["model_type"]) if config.model.family == AUTO else config.model.family
    family = _FAMILY_NAMES.get(kind, kind)
    source = config.start.from_pretrained or config.start.from_run
    origin = "from scratch" if source is None else f"further from the weights of `{Path(source).name}`"
    sections = [
        _front_matter(kind, _task(model, causal), source is None),
        f"# {run.run_name}",
        f"A {family} model (`{model.class_name}`, {model.num_parameters:,} parameters) trained {origin} by "
        f"{learned(config, model.is_generator)} on text of its authors' choice.",
        "## How to load it",
        _usage(model, causal),
        "## Training",
        _table(_training_rows(config, run, model.is_generator)),
        "## Model",
        _table(_model_rows(config, model)),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(config, kind, causal, run.step)),
        "## Licence",
        "None is stated here. The author of the model chooses one, with a view to the licences of the text it was "
        "trained on, and adds it to the front matter (`license: ...`).",
    ]
    return "\n\n".join(sections) + "\n"


def _task(model: ModelFacts, causal: bool) -> str | None:
    if model.auto_class == _DISCRIMINATES:
        return None
    if model.auto_class == _RESTORES:
        return "text2text-generation"
    return "text-generation" if causal else "fill-mask"


def _front_matter(family: str, task: str | None, from_scratch: bool) -> str:
    origin = "- trained-from-scratch\n" if from_scratch else ""
    tag = f"pipeline_tag: {task}\n" if task else ""
    return f"---\nlibrary_name: transformers\n{tag}tags:\n- {family}\n{origin}---"


def _usage(model: ModelFacts, causal: bool) -> str:
    load = (
        "```python\n"
        f"from transformers import AutoTokenizer, {model.auto_class}, pipeline\n\n"
        f'model = {model.auto_class}.from_pretrained("PATH")\n'
        'tokenizer = AutoTokenizer.from_pretrained("PATH")\n'
    )
    if model.auto_class == _DISCRIMINATES:
        return load.replace(", pipeline\n", "\n") + (
            'tokens = tokenizer("The whale sleeps here.", return_tensors="pt")\n'
            "print(model(**tokens).logits > 0)  # which of them were replaced\n```"
        )
    if model.auto_class == _RESTORES:
        return load.replace(", pipeline\n", "\n") + (
            f'noisy = tokenizer("The {model.mask_token or "[MASK]"} is here.", return_tensors="pt")\n'
            "print(tokenizer.batch_decode(model.generate(**noisy, max_new_tokens=40)))\n```"
        )
    if causal:
        return load + (
            'generate = pipeline("text-generation", model=model, tokenizer=tokenizer)\n'
            'print(generate("The", max_new_tokens=40, do_sample=True)[0]["generated_text"])\n```'
        )
    return load + (
        'fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)\n'
        f'print(fill("The {model.mask_token or "[MASK]"} is here."))\n```'
    )


def _training_rows(config: RunConfig, run: RunFacts, generator: bool) -> list[tuple[str, str]]:
    form = "padded" if is_padded(config) else "packed"
    rows = [
        ("Steps", f"{run.step:,} of {config.train.steps:,}"),
        ("Tokens seen", _count(run.tokens_seen)),
        ("Objective", objective_text(config, generator)),
        ("Training loss, last logged", _loss(config, run.training_loss, run.training_terms, generator)),
        ("Validation loss", _held_out(config, run, generator)),
        ("Corpus", ", ".join(run.sources)),
        ("Corpus size", _size(run)),
        ("Corpus fingerprint", f"`{run.corpus_fingerprint}`" if run.corpus_fingerprint else ""),
        ("Global batch", "; ".join(map(str, stages_of(config).begun(run.step)))),
        ("Rows", f"{form} (`{config.data.packing}`); "
         f"{'' if config.data.cross_document_attention else 'no '}attention across documents"),
        ("Optimizer", _optimizer(config.optimizer)),
        ("Schedule", _schedule(config.schedule)),
        ("Gradient clipping", f"{config.train.gradient_clip_norm:g}" if config.train.gradient_clip_norm else "none"),
        ("Precision", config.train.precision),
        ("Strategy", (run.strategy or config.train.strategy) + (f", {run.world_size} ranks" if run.world_size else "")),
        ("Seed", str(config.seed)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]


def _optimizer(optimizer: OptimizerConfig) -> str:
    betas, epsilon = betas_of(optimizer), epsilon_of(optimizer)
    parts = [optimizer.name, f"learning rate {optimizer.learning_rate:g}", f"betas {betas[0]:g} and {betas[1]:g}"]
    parts += [f"epsilon {epsilon:g}"] if epsilon else []
    parts += [f"momentum {momentum_of(optimizer):g}"] if optimizer.name == "muon" else []
    parts.append(f"weight decay {optimizer.weight_decay:g}")
    parts += [f"learning rate x {optimizer.layer_lr_decay:g} a layer"] if optimizer.layer_lr_decay != 1 else []
    parts += [
        f"`{group.match}`: learning rate x {group.learning_rate_scale:g}"
        + ("" if group.weight_decay is None else f", weight decay {group.weight_decay:g}")
        for group in optimizer.groups
    ]
    return ", ".join([*parts, "moments in bf16"] if optimizer.state_dtype == "bf16" else parts)


def _schedule(schedule: ScheduleConfig) -> str:
    warmup = f"{schedule.warmup_steps:,} warmup steps"
    if schedule.warmup_tokens:
        warmup = f"{_count(int(schedule.warmup_tokens))} tokens of warmup"
    if schedule.budget_hours is not None:
        warmup = f"over {schedule.budget_hours:g} hours of training, {schedule.warmup_share:.0%} of them warmup"
    return f"{schedule.name}, {warmup}, final ratio {schedule.final_ratio:g}"


def _model_rows(config: RunConfig, model: ModelFacts) -> list[tuple[str, str]]:
    shape = config.model if model.shape is None else model.shape
    known = [
        ("Class", f"`{model.class_name}`"),
        ("Parameters", f"{model.num_parameters:,}"),
        ("Vocabulary", f"{model.vocab_size:,}"),
    ]
    if shape.family == AUTO:
        return [*known, ("Shape", "as in `config.json`")]
    return [
        *known,
        ("Layers, hidden size, heads, intermediate size",
         f"{shape.num_layers}, {shape.hidden_size}, {shape.num_heads}, {shape.intermediate_size}"),
        ("Positions", str(shape.max_positions)),
        ("Dropout (hidden, attention)", f"{shape.hidden_dropout:g}, {shape.attention_dropout:g}"),
    ]  # fmt: skip


def _limits(config: RunConfig, kind: str, causal: bool, step: int) -> list[str]:
    lines = [
        "It knows the text of its corpus and nothing else, with that text's errors and biases. Nobody has evaluated "
        "it beyond the losses above, neither for a task nor for safety.",
    ]
    if config.start.from_pretrained or config.start.from_run:
        lines[0] = (
            "It knows the text of its corpus and of the model that it began from, with their errors and biases. Nobody "
            "has evaluated it beyond the losses above, neither for a task nor for safety."
        )
    longest = stages_of(config).longest_row(step)
    positions = max_positions(config.model)
    if positions is not None and longest < positions:
        lines.append(
            f"It was trained on rows of {longest} tokens. Longer ones (up to {positions} tokens) were not trained "
            f"here; the tokenizer's `model_max_length` is {longest}."
        )
    if config.data.packing == "concatenate":
        lines.append("Documents were cut at row borders, so some were seen in parts.")
    head = head_of(config)
    if any(task.name == "denoise" for task in config.objective.tasks):
        lines.append("It restores noisy text: tune it for a task (summaries, translation, answers) before use.")
    elif causal:
        lines.append("It continues text. It has not been tuned to follow instructions.")
    else:
        lines.append("It is an encoder: tune it for a task (classification, tagging, retrieval) before use.")
        if kind in _POOLED and head in ("tokens", "masked"):
            second = "" if kind == "roberta" or head == "masked" else ", and token type 1 was not trained here"
            lines.append(f"It was trained here without a sentence-pair objective: it has no pooler{second}.")
    return lines


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _loss(
    config: RunConfig, value: float | None, terms: Mapping[str, float], generator: bool, held: bool = False
) -> str:
    """A loss and what it is: nats a prediction where it has one term, else a sum of terms or mean of objectives.

    Args:
        terms: ``loss_NAME`` by NAME.
        held: it is of an evaluation, which in a mixture has all objectives; a step has one.
    """
    if generator:  # its own loss is one term of the run's
        own = {name: loss for name, loss in terms.items() if name == "mlm" or name.endswith("_mlm")}
        return f"{_listed(own)} nats a prediction (of the generator)" if own else ""
    if value is None:
        return ""
    listed = f": {_listed(terms)}" if terms else ""
    if config.objective.mixture:
        whole = "the mean of the objectives by weight" if held else "of the objective of that step"
        return f"{value:.4f}, {whole}{listed}"
    if has_several_terms(config.objective):
        return f"{value:.4f}, the weighted sum of the terms{listed}"
    return f"{value:.4f} nats a prediction"


def _listed(terms: Mapping[str, float]) -> str:
    if list(terms) == ["mlm"]:
        return f"{terms['mlm']:.4f}"
    return ", ".join(f"{name} {loss:.4f}" for name, loss in terms.items())


def _held_out(config: RunConfig, run: RunFacts, generator: bool) -> str:
    text = _loss(config, run.validation_loss, run.validation_terms, generator, held=True)
    return text + (f" (step {run.validation_step:,})" if text and run.validation_step is not None else "")


def _size(run: RunFacts) -> str:
    if run.corpus_documents is None or run.corpus_tokens is None:
        return ""
    return f"{run.corpus_documents:,} documents, {run.corpus_tokens:,} tokens (training split)"
