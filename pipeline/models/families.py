"""The families of models: which stock class, what its config calls our fields, what its shape adds. No torch here.

A new family is a new entry of :data:`FAMILIES`; builder, packed forward, FLOP and parameter counts read the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pipeline.config.hugging_face import AUTO, PADDED_FAMILIES
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head


@dataclass(frozen=True)
class PairHead:
    """How a family's class for pretraining with sentence pairs differs from the one without."""

    model_class: str
    """Class of `transformers`."""

    pooler: str
    """Module that is given the first token, or from which it takes it."""

    logits: str
    """What its output calls the logits of the pairs."""

    hidden_of: str | None = None
    """Module whose output the first token is taken from before the pooler is called; None: the pooler takes it."""


@dataclass(frozen=True)
class Family:
    """One family of stock transformers classes."""

    model_class: str
    """Class of `transformers` that is trained and exported."""

    config_class: str
    """Its config class."""

    output_norm: str
    """The layer norm whose output meets the vocabulary weights."""

    head_entry: str
    """First module of the vocabulary head, whose input rows are chosen."""

    config_names: Mapping[str, tuple[str, ...]]
    """Keys of the Hugging Face config for every field of :class:`ModelConfig`."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Keys where the published model differs from the defaults of the class; ``model.extra`` wins over them."""

    token_ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Special-token keys of the config, each from the first special token that the tokenizer has."""

    position_hooks: tuple[str, ...] = ()
    """Position tables that take no positions from the model's arguments, the encoder's first."""

    has_decoder: bool = False
    """An encoder, and a decoder of as many layers that reads it."""

    forward_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Constant arguments of ``forward``."""

    pair_head: PairHead | None = None
    """None: there is no class for sentence pairs."""

    discriminator_class: str | None = None
    """Class that tells replaced tokens (ELECTRA)."""

    causal: bool = False
    """A token sees only what stands before it."""

    positions_follow_padding: bool = False
    """Positions count from ``pad_token_id + 1`` (fairseq's convention), so there are that many more of them."""

    type_vocab_size: int = 0
    """Rows of the token-type embedding, where ``extra`` does not say otherwise."""

    embedding_norm: bool = False
    """A layer norm after the embeddings."""

    final_norm: bool = False
    """A layer norm after the last block."""

    head_transform: bool = False
    """The head begins with a dense layer and a layer norm, and ends with a bias (BERT's)."""

    embedding_size: str | None = None
    """Key of the config for the width of the embeddings, where that is not the model's (ALBERT's factorised ones)."""

    shared_blocks: bool = False
    """All blocks are one, computed once for every layer (ALBERT)."""

    biases: bool = True
    """Of linear layers (but the head's last) and norms."""

    gated: bool = False
    """The feed-forward layer multiplies two projections (Shazeer 2020, "GLU variants improve transformer")."""

    position_table: bool = True
    """Learned positions; else rotary ones, which have no parameters."""

    local_attention: str | None = None
    """Key of the config for the tokens that the attention of most layers spans, to both sides together; every
    :data:`GLOBAL_EVERY`-th layer, from the first, sees all (ModernBERT)."""

    padded: str | None = None
    """Why no packed row can be given to the class, but rows of one text and a mask; None: packed."""

    logits_after_head: bool = False
    """The class changes what the head's last layer returns, so that whole logits are needed for the loss."""

    narrow_last_block: bool = False
    """The last block can be computed at the predicted positions only (`last_block.py`): its modules are BERT's."""


_ENCODER_NAMES: Final = {
    "hidden_size": ("hidden_size",),
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "intermediate_size": ("intermediate_size",),
    "hidden_dropout": ("hidden_dropout_prob",),
    "attention_dropout": ("attention_probs_dropout_prob",),
    "initializer_range": ("initializer_range",),
    "max_positions": ("max_position_embeddings",),
}

FAMILIES: Final[Mapping[str, Family]] = {
    # Devlin et al. 2018.
    "bert": Family(
        model_class="BertForMaskedLM",
        config_class="BertConfig",
        output_norm="cls.predictions.transform.LayerNorm",
        config_names=_ENCODER_NAMES,
        token_ids={"pad_token_id": ("pad",)},
        head_entry="cls.predictions",
        pair_head=PairHead("BertForPreTraining", "bert.pooler", "seq_relationship_logits"),
        type_vocab_size=2,
        embedding_norm=True,
        head_transform=True,
        narrow_last_block=True,
    ),
    # Liu et al. 2019; the defaults are roberta-base's, not the class's.
    "roberta": Family(
        model_class="RobertaForMaskedLM",
        config_class="RobertaConfig",
        output_norm="lm_head.layer_norm",
        config_names=_ENCODER_NAMES,
        defaults={"type_vocab_size": 1, "layer_norm_eps": 1e-5},
        token_ids={"pad_token_id": ("pad",), "bos_token_id": ("bos", "cls"), "eos_token_id": ("eos", "sep")},
        head_entry="lm_head",
        positions_follow_padding=True,
        type_vocab_size=1,
        embedding_norm=True,
        head_transform=True,
        narrow_last_block=True,
    ),
    # Sanh et al. 2019: BERT without token types and pooler, half as deep.
    "distilbert": Family(
        model_class="DistilBertForMaskedLM",
        config_class="DistilBertConfig",
        output_norm="vocab_layer_norm",
        head_entry="vocab_transform",
        config_names={
            "hidden_size": ("dim",),
            "num_layers": ("n_layers",),
            "num_heads": ("n_heads",),
            "intermediate_size": ("hidden_dim",),
            "hidden_dropout": ("dropout",),
            "attention_dropout": ("attention_dropout",),
            "initializer_range": ("initializer_range",),
            "max_positions": ("max_position_embeddings",),
        },
        token_ids={"pad_token_id": ("pad",)},
        embedding_norm=True,
        head_transform=True,
    ),
    # Lan et al. 2020.
    "albert": Family(
        model_class="AlbertForMaskedLM",
        config_class="AlbertConfig",
        output_norm="predictions.LayerNorm",
        head_entry="predictions",
        pair_head=PairHead("AlbertForPreTraining", "albert.pooler", "sop_logits", "albert.encoder"),
        # The stock head for pairs drops 0.1 of its input unless told otherwise; the paper's code drops nothing there.
        config_names={**_ENCODER_NAMES, "hidden_dropout": ("hidden_dropout_prob", "classifier_dropout_prob")},
        token_ids={"pad_token_id": ("pad",), "bos_token_id": ("bos", "cls"), "eos_token_id": ("eos", "sep")},
        type_vocab_size=2,
        embedding_norm=True,
        embedding_size="embedding_size",
        shared_blocks=True,
        head_transform=True,
    ),
    # Clark et al. 2020 (https://arxiv.org/abs/2003.10555); the class with a head for tokens is the generator's.
    "electra": Family(
        model_class="ElectraForMaskedLM",
        config_class="ElectraConfig",
        output_norm="generator_predictions.LayerNorm",
        head_entry="generator_predictions",
        discriminator_class="ElectraForPreTraining",
        config_names=_ENCODER_NAMES,
        token_ids={"pad_token_id": ("pad",)},
        type_vocab_size=2,
        embedding_norm=True,
        embedding_size="embedding_size",
        head_transform=True,
        narrow_last_block=True,
    ),
    # Warner et al. 2024 (https://arxiv.org/abs/2412.13663).
    "modernbert": Family(
        model_class="ModernBertForMaskedLM",
        config_class="ModernBertConfig",
        output_norm="head.norm",
        head_entry="head",
        config_names={
            **_ENCODER_NAMES,
            "hidden_dropout": ("embedding_dropout", "mlp_dropout"),
            "attention_dropout": ("attention_dropout",),
        },
        token_ids={
            "pad_token_id": ("pad",),
            "bos_token_id": ("bos", "cls"),
            "eos_token_id": ("eos", "sep"),
            "cls_token_id": ("cls",),
            "sep_token_id": ("sep",),
        },
        embedding_norm=True,
        final_norm=True,
        head_transform=True,
        biases=False,
        gated=True,
        position_table=False,
        local_attention="local_attention",
    ),
    # Lewis et al. 2020; a generated text ends with the tokenizer's end.
    "bart": Family(
        model_class="BartForConditionalGeneration",
        config_class="BartConfig",
        output_norm="model.decoder.layers.-1.final_layer_norm",
        head_entry="lm_head",
        config_names={
            "hidden_size": ("d_model",),
            "num_layers": ("encoder_layers", "decoder_layers"),
            "num_heads": ("encoder_attention_heads", "decoder_attention_heads"),
            "intermediate_size": ("encoder_ffn_dim", "decoder_ffn_dim"),
            "hidden_dropout": ("dropout",),
            "attention_dropout": ("attention_dropout",),
            "initializer_range": ("init_std",),
            "max_positions": ("max_position_embeddings",),
        },
        token_ids={
            "pad_token_id": ("pad",),
            "bos_token_id": ("bos", "cls"),
            "eos_token_id": ("eos", "sep"),
            "decoder_start_token_id": ("eos", "sep"),
            "forced_eos_token_id": ("eos", "sep"),
        },
        forward_arguments={"use_cache": False},
        embedding_norm=True,
        position_hooks=("model.encoder.embed_positions", "model.decoder.embed_positions"),
        has_decoder=True,
    ),
    # Radford et al. 2019. No pad_token_id: the stock forward would look for it in the ids, a wait for the GPU.
    "gpt2": Family(
        model_class="GPT2LMHeadModel",
        config_class="GPT2Config",
        output_norm="transformer.ln_f",
        head_entry="lm_head",
        config_names={
            "hidden_size": ("n_embd",),
            "num_layers": ("n_layer",),
            "num_heads": ("n_head",),
            "intermediate_size": ("n_inner",),
            "hidden_dropout": ("resid_pdrop", "embd_pdrop"),
            "attention_dropout": ("attn_pdrop",),
            "initializer_range": ("initializer_range",),
            "max_positions": ("n_positions",),
        },
        token_ids={"bos_token_id": ("bos", "eos"), "eos_token_id": ("eos",)},
        forward_arguments={"use_cache": False},
        causal=True,
        final_norm=True,
    ),
    # Radford et al. 2018: the feed-forward layer is always 4 times as wide, and norms follow what they normalise.
    "openai-gpt": Family(
        model_class="OpenAIGPTLMHeadModel",
        config_class="OpenAIGPTConfig",
        output_norm="transformer.h.-1.ln_2",
        head_entry="lm_head",
        config_names={
            "hidden_size": ("n_embd",),
            "num_layers": ("n_layer",),
            "num_heads": ("n_head",),
            "intermediate_size": (),
            "hidden_dropout": ("resid_pdrop", "embd_pdrop"),
            "attention_dropout": ("attn_pdrop",),
            "initializer_range": ("initializer_range",),
            "max_positions": ("n_positions",),
        },
        causal=True,
        padded=PADDED_FAMILIES["openai-gpt"],
    ),
}


def model_class_name(config: ModelConfig, head: Head) -> str:
    """Class of `transformers` that is trained and exported.

    Raises:
        ValueError: the family has no class with such a head.
    """
    if config.family == AUTO:
        from pipeline.models.auto import auto_config, class_of

        return class_of(auto_config(config, head, 64, {}), head)
    family = FAMILIES[config.family]
    of_pairs = None if family.pair_head is None else family.pair_head.model_class
    name = {"tokens": family.model_class, "pairs": of_pairs, "discriminator": family.discriminator_class}.get(head)
    if name is None:
        raise ValueError(f"{config.family} has no class with a head for {HEADS[head]}")
    return name


HEADS: Final[Mapping[Head, str]] = {
    "tokens": "tokens",
    "pairs": "sentence pairs",
    "discriminator": "replaced tokens",
    "masked": "masked tokens",
    "causal": "next tokens",
    "seq2seq": "a decoder's tokens",
}
"""What they judge."""


def num_positions(config: ModelConfig, pad_id: int = 1) -> int:
    """Rows of the position embedding so that ``max_positions`` of them can be used."""
    if not FAMILIES[config.family].position_table:
        return config.max_positions
    return config.max_positions + (pad_id + 1 if FAMILIES[config.family].positions_follow_padding else 0)


GLOBAL_EVERY: Final = 3
"""Layers from one that sees all to the next (ModernBERT)."""

_LOCAL_ATTENTION: Final = 128
"""The class's default."""


def attention_window(config: ModelConfig) -> int | None:
    """How far a token sees to either side in the local layers; None where there are none."""
    key = None if config.family == AUTO else FAMILIES[config.family].local_attention
    return None if key is None else int(config.extra.get(key, _LOCAL_ATTENTION)) // 2


def num_local_layers(config: ModelConfig) -> int:
    """Layers in which a token sees no farther than :func:`attention_window`."""
    if FAMILIES[config.family].local_attention is None:
        return 0
    return config.num_layers - -(-config.num_layers // GLOBAL_EVERY)


FACTORISED_EMBEDDING_SIZE: Final = 128
"""The default of ALBERT's and ELECTRA's classes."""


def embedding_size(config: ModelConfig) -> int:
    """Width of the embeddings."""
    key = FAMILIES[config.family].embedding_size
    return config.hidden_size if key is None else int(config.extra.get(key, FACTORISED_EMBEDDING_SIZE))


def projects_embeddings(config: ModelConfig) -> bool:
    """Whether a layer brings the embeddings to the width of the model: ALBERT's always does, ELECTRA's where needed."""
    family = FAMILIES[config.family]
    if family.embedding_size is None:
        return False
    return family.shared_blocks or embedding_size(config) != config.hidden_size


def generator_config(config: ModelConfig) -> ModelConfig:
    """The generator beside a discriminator of this shape: narrower, with the embeddings of the discriminator."""
    share = config.generator_size
    heads, inner = (max(1, round(share * size)) for size in (config.num_heads, config.intermediate_size))
    extra = {**config.extra, "embedding_size": embedding_size(config)}
    return replace(
        config, hidden_size=round(share * config.hidden_size), num_heads=heads, intermediate_size=inner, extra=extra
    )
