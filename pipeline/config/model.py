"""The config of a model: the section `model` of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal[
    "bert", "roberta", "distilbert", "albert", "electra", "modernbert", "bart", "gpt2", "openai-gpt", "auto"
]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a stock Hugging Face model. Defaults are BERT-base."""

    family: Family = "bert"
    """`bert` (BertForMaskedLM), `roberta` (RobertaForMaskedLM), `distilbert` (DistilBertForMaskedLM), `albert`
    (AlbertForMaskedLM; `extra: {embedding_size: 128}` is the width of its embeddings), `electra`
    (ElectraForPreTraining, or with objective `mlm` ElectraForMaskedLM; embeddings as `albert`), `modernbert`
    (ModernBertForMaskedLM; `extra: {local_attention: 128}` are the tokens that two layers of three see), `bart`
    (BartForConditionalGeneration; layers, heads and feed-forward layers of either side), `gpt2`
    (GPT2LMHeadModel), `openai-gpt` (OpenAIGPTLMHeadModel, the first GPT) or `auto` (what `config` names). With a pair
    objective `bert` and `albert` are BertForPreTraining and AlbertForPreTraining."""

    config: dict[str, Any] | None = None
    """Family `auto`: path of a Hugging Face `config.json`, or of its folder, whose keys the resolved config holds. The
    fields of the shape below are then left out; vocabulary and special tokens come from the corpus."""

    hidden_size: int = 768
    """Width of the model; a multiple of `num_heads`."""

    num_layers: int = 12
    """Transformer blocks."""

    num_heads: int = 12
    """Attention heads a block."""

    intermediate_size: int = 3072
    """Width of the feed-forward layer."""

    max_positions: int = 512
    """Positions (learned ones, but in modernbert): the longest sequence the exported model can take."""

    vocab_size: int | None = None
    """Rows of the embedding. Default: as many as the corpus tokenizer has ids. More is allowed, fewer is an error."""

    remap_vocabulary: str | None = None
    """With `start`: `random`, every id takes another row of the source; or a JSON list of rows, -1 for their mean."""

    generator_size: float = 0.25
    """rtd: width, heads and feed-forward layer of the generator, as a share of the discriminator's."""

    hidden_dropout: float = 0.1
    """Dropout after embeddings, attention output and feed-forward output."""

    attention_dropout: float = 0.0
    """Dropout of attention weights. On CUDA flash attention has none for packed rows: above 0.0 an exact operator runs
    there that is many times slower (MosaicBERT and ModernBERT train with 0.0)."""

    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""

    mup_base_width: int | None = None
    """muP (Yang et al. 2022): initial weights and learning rates are scaled so that settings tuned on a model with this
    `hidden_size` (and `intermediate_size` and `num_heads` smaller in proportion) hold for this one. Default: off."""

    drop_ins: bool = True
    """Faster modules in place of stock ones where a measurement supports it: same weights, same results but for
    rounding, same export (`docs/performance.md`)."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Further keys for the Hugging Face config class, passed as they are, e.g. `{hidden_act: gelu_new}`."""
