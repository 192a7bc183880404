"""How a run is compiled: once a stage, in the mode asked for, with the kernels kept for later starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.base.errors import UserError
from pipeline.config.derived import batch_plan
from pipeline.config.run import BatchWarmupConfig, RunConfig, TrainConfig
from pipeline.objectives.loss import packed_loss_sum, vocabulary_loss
from pipeline.train.compilation import compile_step, prepare_compiler
from pipeline.train.module import PretrainModule


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=8):
        yield


def compiled_module(**train: Any) -> PretrainModule:
    config = RunConfig(train=TrainConfig(**{"global_batch_size": 512, "strategy": "ddp", "compile": True, **train}))
    module = PretrainModule(nn.Linear(2, 1), vocabulary_loss("mlm"), config, batch_plan(config, 2), 0)
    compile_step(module)
    return module


@pytest.mark.parametrize(("tokens", "limit"), [(0.0, 4 + 6), (1e6, 4 * 32 + 6)])
def test_every_stage_may_be_compiled(tokens: float, limit: int) -> None:
    compiled_module(batch_warmup=BatchWarmupConfig(tokens=tokens, start=16, increment=16))
    assert torch._dynamo.config.recompile_limit == limit


@pytest.mark.parametrize(("mode", "asked"), [("default", None), ("max-autotune", "max-autotune")])
def test_the_mode_reaches_torch(mode: str, asked: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: calls.append(options) or function)
    module = compiled_module(compile_mode=mode)
    assert calls == 2 * [{"fullgraph": True, "dynamic": False, "mode": asked}]  # to train and to evaluate
    assert module.loss.function is packed_loss_sum
    assert not module.keeps_gradients


def test_nothing_of_a_cuda_graph_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a graph: it writes every result into the same memory."""
    memory = torch.zeros(())
    monkeypatch.setattr(torch, "compile", lambda function, mode, **_: lambda value: memory.fill_(value))
    module = compiled_module(compile_mode="reduce-overhead")
    losses = [module.loss.function(1.0), module.loss.function(2.0)]
    assert [float(loss) for (loss,) in losses] == [1.0, 2.0]
    optimizer = torch.optim.SGD(module.model.parameters())
    for _ in range(2):
        module.optimizer_zero_grad(0, 0, optimizer)
        gradients = [parameter.grad for parameter in module.model.parameters()]
        given = torch.ones(3, 2)
        module.model(given).sum().backward()
        for parameter, gradient in zip(module.model.parameters(), gradients, strict=True):
            assert parameter.grad is gradient
            assert torch.equal(gradient, torch.full_like(gradient, 3.0))


def test_the_cache_is_where_the_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setenv("CXX", "c++")
    prepare_compiler(TrainConfig(compile_cache="$SCRATCH/of/node"), torch.device("cpu"))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "of/node")
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path / "of/node")


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"train\.compile_cache: .*file/cache cannot be made or written \(Not a direct"):
        prepare_compiler(TrainConfig(compile_cache=str(tmp_path / "file/cache")), torch.device("cpu"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # what root is never told
    with pytest.raises(UserError, match=r"train\.compile_cache: .* cannot be made or written \(Permission denied\)"):
        prepare_compiler(TrainConfig(compile_cache=str(tmp_path)), torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "variable", "message"),
    [
        (
            "cpu",
            "CXX",
            r"needs a C\+\+ compiler on this device \(cpu\), and none of g\+\+, c\+\+, clang\+\+ is on",
        ),
        ("cuda", "CC", r"needs a C compiler on this device \(cuda\), and none of gcc, clang is on PATH; install one"),
    ],
)
def test_compiling_needs_a_compiler(
    device: str, variable: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    train = TrainConfig(compile_cache=str(tmp_path))
    with pytest.raises(UserError, match=message):
        prepare_compiler(train, torch.device(device))
    monkeypatch.setenv(variable, "my-compiler")
    prepare_compiler(train, torch.device(device))


def test_cuda_graphs_need_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++")
    with pytest.raises(UserError, match=r"`reduce-overhead` replays CUDA graphs, and this run is on a CPU"):
        prepare_compiler(TrainConfig(compile_mode="reduce-overhead"), torch.device("cpu"))
