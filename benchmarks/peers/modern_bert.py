"""Hugging Face's ModernBERT (Warner et al. 2024) of the published base size, with the vocabulary of the corpus."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from benchmarks.workload import Workload


def modern_bert(workload: Workload) -> Any:
    """The stock class with new weights on the device of the workload, with the best attention it has here."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    special = workload.streams.manifest.special_ids
    sizes: dict[str, Any] = {}
    if workload.shape.num_layers < 12:  # the reduced form
        sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    config = ModernBertConfig(
        vocab_size=workload.shape.vocab_size,
        max_position_embeddings=workload.shape.sequence_length,
        pad_token_id=special["pad"],
        cls_token_id=special["cls"],
        sep_token_id=special["sep"],
        bos_token_id=special["cls"],
        eos_token_id=special["sep"],
        **sizes,
    )
    on_cuda = workload.hardware.device == "cuda"
    has_flash = on_cuda and importlib.util.find_spec("flash_attn") is not None
    config._attn_implementation = "flash_attention_2" if has_flash else "sdpa"
    with torch.device(workload.hardware.device):
        return ModernBertForMaskedLM(config).train()
