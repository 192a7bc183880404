"""The config of what is learned: the section `objective` of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

ObjectiveName = Literal["mlm", "mlm+nsp", "mlm+sop", "rtd", "distil", "denoise", "clm"]
Masking = Literal["token", "whole_word", "span"]
Head = Literal["tokens", "pairs", "discriminator", "masked", "causal", "seq2seq"]
"""What a stock class has on its body: a head for tokens, one for tokens and one for sentence pairs, or one that tells
replaced tokens; of family `auto` the one for masked tokens, for next tokens, or of a decoder."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """One thing that a model learns to predict."""

    name: ObjectiveName = "mlm"
    """`mlm`: masked tokens (every family but gpt2). `mlm+nsp`, `mlm+sop`: masked tokens and sentence pairs, whether the
    second part is the true next (BERT), whether the parts stand in their order (ALBERT); for bert and albert, with
    `data.packing` `pairs_nsp` and `pairs_sop`. `rtd`: which tokens a small masked language model, trained beside, has
    replaced (electra). `clm`: the next token (gpt2, openai-gpt). `distil`: mlm, or clm for gpt2, with a teacher.
    `denoise`: the clean text of a noisy one (bart). Family `auto` takes `mlm`, `clm` and `denoise`, and with them the
    class of AutoModelForMaskedLM, AutoModelForCausalLM and AutoModelForSeq2SeqLM."""

    mask_rate: float = 0.15
    """mlm: share of the maskable tokens of a row that is predicted; the count is exact, round(rate x maskable)."""

    mask_token_share: float = 0.8
    """mlm: share of the predicted tokens replaced by the mask token (BERT). denoise: of the masked span's."""

    random_token_share: float = 0.1
    """mlm, masked span of denoise: share of those tokens replaced by a random token; the rest stay as they are."""

    masking: Masking = "token"
    """mlm: what is chosen at a time: `token`, `whole_word` (BERT's whole word masking) or `span` of words (SpanBERT).
    The last two need a corpus built with `shards.words`."""

    mask_copies: int | None = None
    """mlm: default: dynamic, masks are drawn anew for every row of every epoch. k: a document keeps its masks, of which
    there are k copies, one an epoch in turn (1: the same for ever); the count of a row then varies about the rate."""

    discriminator_weight: float = 50.0
    """rtd: weight of the discriminator's loss beside the generator's."""

    infilling_rate: float = 0.3
    """denoise: share of the tokens in spans that become one mask token each; spans of none are inserted."""

    infilling_mean: float = 3.0
    """denoise: mean of the Poisson distribution of a span's length."""

    permute_sentences: float = 1.0
    """denoise: share of the segments whose sentences are shuffled. Needs a corpus built with `shards.sentences`."""

    deletion_rate: float = 0.0
    """denoise: share of the tokens that are left out."""

    token_mask_rate: float = 0.0
    """denoise: share of the tokens that become mask tokens, one by one."""

    rotation: float = 0.0
    """denoise: share of the segments that are rotated to begin at a random token."""

    span_mask_rate: float = 0.0
    """denoise: share of every segment's text, one span at a random place, that is masked token by token (MASS: 0.5)."""

    predict: Literal["all", "masked"] = "all"
    """denoise: whether the decoder reads and predicts the whole text (BART), or predicts the masked span only and reads
    mask tokens for the rest (MASS)."""

    teacher: str | None = None
    """distil: folder of a Hugging Face model with the corpus's tokenizer."""

    temperature: float = 2.0
    """distil: divides the logits of both before they are compared."""

    soft_weight: float = 5.0
    """distil: weight of the divergence from the teacher's distribution (DistilBERT: 5)."""

    hard_weight: float = 2.0
    """distil: weight of the cross-entropy of the true tokens."""

    cosine_weight: float = 1.0
    """distil: weight of one minus the cosine between the last hidden states; 0 where the widths differ."""

    span_geometric_p: float = 0.2
    """span: the p of the geometric distribution of a span's length in words; smaller makes longer spans."""

    span_max_words: int = 10
    """span: most words of a span."""

    @property
    def tasks(self) -> Sequence[ObjectiveConfig]:
        """The objectives of a run: this one."""
        return [self]


@dataclass(frozen=True)
class TaskConfig(ObjectiveConfig):
    """An objective that takes its turn with others. What an entry does not say is as in `objective`."""

    weight: float = 1.0
    """Share of the steps, against the weights of the others."""

    label: str | None = None
    """Name of its metrics, `loss_LABEL`. Default: its `name`. Labels differ; they hold no `_`."""

    @property
    def shown_label(self) -> str:
        """The label, given or not."""
        return self.name if self.label is None else self.label


@dataclass(frozen=True)
class RunObjectiveConfig(ObjectiveConfig):
    """What the model learns to predict."""

    mixture: list[TaskConfig] = field(default_factory=list)
    """Several objectives instead of one: every step takes one of them, drawn by weight. They share rows, packing, the
    head of the model and the teacher."""

    @property
    def tasks(self) -> Sequence[ObjectiveConfig]:
        """The objectives of the mixture, or this one."""
        return self.mixture or [self]


def alone(task: ObjectiveConfig) -> RunObjectiveConfig:
    """An objective as that of a run which has no other."""
    return RunObjectiveConfig(**{setting.name: getattr(task, setting.name) for setting in fields(ObjectiveConfig)})
