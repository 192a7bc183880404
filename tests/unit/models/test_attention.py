"""What the registered attention function refuses and how it draws dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.config.run import ModelConfig, PrecisionName
from pipeline.models import attention
from pipeline.models.attention import check_device, packed_attention, use_flash_attention_3
from pipeline.models.build import build_model
from pipeline.models.packed import packed_logits
from tests.unit.models.packing_cases import SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config

CASE = PackedCase([[10, 9], [20, 12]])


def logits_with_dropout(seed: int, training: bool = True) -> torch.Tensor:
    config = tiny_config("bert", attention_dropout=0.5)
    model = build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=0).train(training)
    torch.manual_seed(seed)
    return packed_logits(model, CASE.input_ids, CASE.position_ids, CASE.cu_seqlens, 32, CASE.predicted)


def test_attention_dropout_follows_torchs_generator() -> None:
    assert torch.equal(logits_with_dropout(1), logits_with_dropout(1))
    assert not torch.equal(logits_with_dropout(1), logits_with_dropout(2))


def test_attention_dropout_is_off_in_evaluation() -> None:
    assert torch.equal(logits_with_dropout(1, training=False), logits_with_dropout(2, training=False))


@pytest.mark.parametrize(
    ("model", "precision", "message"),
    [
        ({"attention_dropout": 0.1}, "bf16", "model.attention_dropout: 0.1: flash attention for packed rows has no dr"),
        ({}, "fp32", "train.precision: `fp32`: flash attention takes `bf16` and `fp16` only"),
        (
            {"hidden_size": 120},
            "bf16",
            "model.num_heads: 12 heads are 10 wide, and flash attention takes mult",
        ),
        (
            {"num_heads": 2},
            "fp16",
            "model.num_heads: 2 heads are 384 wide, and flash attention takes mult",
        ),
    ],
)
def test_what_keeps_flash_attention_from_running_is_said_to_be_slow(
    model: dict[str, Any],
    precision: PrecisionName,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check_device(ModelConfig(**model), "cpu", precision)
    check_device(ModelConfig(), "cuda", "bf16")
    assert not caplog.records
    check_device(ModelConfig(**model), "cuda", precision)
    (record,) = caplog.records
    assert message in record.getMessage()
    assert "The exact operator runs, many times slower." in record.getMessage()


def packed(cu_seqlens: torch.Tensor, max_length: int) -> dict[str, Any]:
    return {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, "max_length_q": max_length}


def test_flash_attention_never_drops_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel would be taken, dropout of the weights leads to the exact operator."""
    monkeypatch.setattr(attention, "_flash_takes", lambda query: True)
    monkeypatch.setattr(attention, "_flash_attention", lambda *_, **__: pytest.fail("the kernel was called"))
    q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
    layer = torch.nn.Module()
    torch.manual_seed(0)
    output, _ = packed_attention(layer, q, k, v, None, is_causal=False, dropout=0.5, **packed(torch.tensor([0, 5]), 5))
    assert not torch.allclose(output[0].transpose(0, 1), torch.nn.functional.scaled_dot_product_attention(q, k, v)[0])


@pytest.mark.parametrize(
    ("device", "major", "installed", "taken"),
    [("cuda", 9, True, True), ("cuda", 9, False, False), ("cuda", 10, True, False), ("cpu", 9, True, False)],
)
def test_flash_attention_3_where_it_is_installed(
    device: str, major: int, installed: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", calls.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    assert use_flash_attention_3(device) == taken
    assert calls == ["FA3"] * taken


def test_this_torch_knows_flash_attention_3() -> None:
    assert "FA3" in torch.nn.attention.list_flash_attention_impls()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_an_old_gpu_is_refused_in_half_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    with pytest.raises(UserError, match=rf"train\.precision: {precision} needs a GPU .* this one has 7\.0.*fp32"):
        check_device(ModelConfig(), "cuda", precision)  # type: ignore[arg-type]
    check_device(ModelConfig(), "cuda", "fp32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    check_device(ModelConfig(), "cuda", precision)  # type: ignore[arg-type]


class OnCuda:
    """A tensor as far as the choice of the kernel looks at it."""

    is_cuda = True

    def __init__(self, dtype: torch.dtype, width: int) -> None:
        self.dtype = dtype
        self.shape = (1, 4, width)


def test_flash_attention_takes_half_precision_and_widths_it_knows() -> None:
    takes = {
        (dtype, width): attention._flash_takes(OnCuda(dtype, width))  # type: ignore[arg-type]
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
        for width in (64, 256, 60, 264)
    }
    expected = {(dtype, width) for dtype in (torch.bfloat16, torch.float16) for width in (64, 256)}
    assert {key for key, taken in takes.items() if taken} == expected
    assert not attention._flash_takes(torch.zeros(1, 4, 64, dtype=torch.bfloat16))


def test_a_mask_is_refused() -> None:
    q = torch.zeros(1, 2, 4, 8)
    cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)
    mask = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"takes one packed row .* and no attention_mask"):
        packed_attention(torch.nn.Module(), q, q, q, mask, **packed(cu_seqlens, 4))


@pytest.mark.parametrize(("is_causal", "window"), [(True, (-1, 0)), (False, (-1, -1))])
def test_the_cuda_kernel_is_called_as_this_torch_declares_it(
    is_causal: bool, window: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU needed: the call must bind to the real signature, and is recorded in place of the kernel."""
    import inspect

    signature = inspect.signature(attention.varlen_attn)
    calls = []

    def record(*arguments: object, **options: object) -> torch.Tensor:
        calls.append(signature.bind(*arguments, **options).arguments)
        return arguments[0]  # type: ignore[return-value]

    monkeypatch.setattr(attention, "_flash_attention", record)
    monkeypatch.setattr(attention, "_flash_takes", lambda query: True)
    q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
    cu_seqlens = torch.tensor([0, 2, 5, 5], dtype=torch.int32)
    layer = torch.nn.Module()
    layer.is_causal = is_causal
    output, weights = packed_attention(layer, q, k, v, None, scaling=0.7, **packed(cu_seqlens, 5))
    (call,) = calls
    assert weights is None
    assert torch.equal(output[0], q[0].transpose(0, 1))
    assert torch.equal(call["value"], v[0].transpose(0, 1))
    assert (call["scale"], call["window_size"], call["max_q"], call["max_k"]) == (0.7, window, 5, 5)
    assert call["cu_seq_q"] is cu_seqlens
    assert call["cu_seq_k"] is cu_seqlens
