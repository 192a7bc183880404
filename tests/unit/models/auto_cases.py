"""Tiny `config.json` contents for the tests of family `auto`: packed and padded, masked, causal and of two sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head

_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class AutoCase:
    """A config, and what is expected of it."""

    head: Head
    class_name: str
    keys: dict[str, Any] = field(default_factory=dict)
    padded: str | None = None
    """The reason, or a part of it; None: packed."""

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(family="auto", config=self.keys)


NO_INTERFACE = "its attention does not go through transformers' attention interface"
ROPE = {**_SHAPE, "num_key_value_heads": 2}
ENCODER = {**_SHAPE, **_NO_DROPOUT}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}

CASES = {
    "llama": AutoCase("causal", "LlamaForCausalLM", {"model_type": "llama", **ROPE}),
    "mistral": AutoCase("causal", "MistralForCausalLM", {"model_type": "mistral", **ROPE, "sliding_window": 4}),
    "cohere": AutoCase("causal", "CohereForCausalLM", {"model_type": "cohere", **ROPE, "logit_scale": 0.3}),
    "xlm-roberta": AutoCase("masked", "XLMRobertaForMaskedLM", {"model_type": "xlm-roberta", **ENCODER}),
    "bert": AutoCase("masked", "BertForMaskedLM", {"model_type": "bert", **ENCODER}),
    "gemma2": AutoCase("causal", "Gemma2ForCausalLM", {"model_type": "gemma2", **ROPE, "head_dim": 8}, "`softcap`"),
    "openai-gpt": AutoCase(
        "causal",
        "OpenAIGPTLMHeadModel",
        {"model_type": "openai-gpt", "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
         "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2},
        NO_INTERFACE,
    ),
    "deberta-v2": AutoCase(
        "masked",
        "DebertaV2ForMaskedLM",
        {"model_type": "deberta-v2", **ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
         "position_biased_input": False, "type_vocab_size": 0},
        NO_INTERFACE,
    ),
    "mpnet": AutoCase("masked", "MPNetForMaskedLM", {"model_type": "mpnet", **ENCODER}, NO_INTERFACE),
    # It scales a row by how many of its tokens are masked.
    "esm": AutoCase("masked", "EsmForMaskedLM", {"model_type": "esm", **ENCODER, "token_dropout": True}, "come out"),
    "t5": AutoCase("seq2seq", "T5ForConditionalGeneration", T5, "two packed rows"),
}  # fmt: skip
PACKED = [name for name, case in CASES.items() if case.padded is None]
PADDED = [name for name, case in CASES.items() if case.padded is not None]
