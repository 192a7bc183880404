"""Distillation: the three terms against plain formulas, a model that teaches itself, and what has no gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.config.run import Family, ObjectiveConfig
from pipeline.models.build import build_model
from pipeline.models.packed import packed_logits
from pipeline.models.teacher import read_teacher
from pipeline.objectives.distil import distillation_loss, distillation_sums
from tests.unit.models.packing_cases import SPECIAL_IDS, VOCAB_SIZE, PackedCase, tiny_config
from tests.unit.models.test_starting_points import saved

FAMILIES: tuple[Family, ...] = ("bert", "distilbert", "gpt2")
CASE = PackedCase([[20, 12], [7, 9, 10]])
POSITIONS, LABELS = CASE.padded_predictions(40)
ROWS = (CASE.input_ids, CASE.position_ids, CASE.cu_seqlens, POSITIONS, LABELS, 32)


def model_of(family: Family, seed: int, **changes: Any) -> Any:
    config = tiny_config(family, **changes)
    return build_model(config, vocab_size=VOCAB_SIZE, special_ids=SPECIAL_IDS, seed=seed).double()


def teacher_of(family: Family, folder: Path, seed: int = 1, **changes: Any) -> nn.Module:
    return read_teacher(saved(model_of(family, seed, **changes).float(), folder), torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_teaches_itself_has_no_soft_loss(family: Family, tmp_path: Path) -> None:
    model = model_of(family, 1)
    teacher = teacher_of(family, tmp_path)
    model.load_state_dict(teacher.state_dict())
    hard, soft, apart = distillation_sums(model, teacher, 2.0, *ROWS)
    assert float(hard) > 1
    assert abs(float(soft)) < 1e-10
    assert abs(float(apart)) < 1e-10


@pytest.mark.parametrize("family", FAMILIES)
def test_the_terms_are_those_of_the_formulas(family: Family, tmp_path: Path) -> None:
    """One position at a time, in numbers."""
    student, teacher = model_of(family, 0), teacher_of(family, tmp_path)
    found = distillation_sums(student, teacher, 3.0, *ROWS)
    hidden: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, model in (("student", student), ("teacher", teacher)):
            entry = {"bert": "cls.predictions", "distilbert": "vocab_transform", "gpt2": "lm_head"}[family]
            hook = model.get_submodule(entry).register_forward_pre_hook(
                lambda _, arguments, name=name: hidden.__setitem__(name, arguments[0][0])
            )
            hidden[f"{name} logits"] = packed_logits(model, *ROWS[:3], 32, POSITIONS)
            hook.remove()
    expected = [0.0, 0.0, 0.0]
    for place, label in enumerate(LABELS.tolist()):
        if label == -100:
            continue
        logits, taught = hidden["student logits"][place], hidden["teacher logits"][place]
        expected[0] -= float(logits.log_softmax(-1)[label])
        p, q = (taught / 3).softmax(-1), (logits / 3).softmax(-1)
        expected[1] += 9 * float((p * (p / q).log()).sum())
        one, other = hidden["student"][place], hidden["teacher"][place]
        expected[2] += 1 - float(one @ other / one.norm() / other.norm())
    assert [float(term.detach()) for term in found] == pytest.approx(expected, rel=1e-9)


def test_the_teacher_has_no_gradient_and_no_dropout(tmp_path: Path) -> None:
    student = model_of("distilbert", 0)
    teacher = teacher_of("bert", tmp_path, hidden_dropout=0.5)
    first, again = (distillation_sums(student, teacher, 2.0, *ROWS)[1] for _ in range(2))
    assert float(first.detach()) == float(again.detach())
    first.backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters() if parameter.requires_grad)


def test_terms_without_weight_are_left_out(tmp_path: Path) -> None:
    teacher, student = teacher_of("bert", tmp_path, hidden_size=48), model_of("distilbert", 0)
    config = ObjectiveConfig(name="distil", soft_weight=5.0, hard_weight=0.0, cosine_weight=0.0)
    loss = distillation_loss(teacher, config, "mlm")
    assert [(term.name, term.weight) for term in loss.terms] == [("mlm", 0.0), ("soft", 5.0)]
    sums = loss.function(student, *ROWS)
    assert [float(one.detach()) for one in sums] == [
        float(one.detach()) for one in distillation_sums(student, teacher, config.temperature, *ROWS)[:2]
    ]


def test_a_body_without_a_head_teaches_nothing(tmp_path: Path) -> None:
    model = model_of("bert", 1).float()
    model.bert.config._attn_implementation = "sdpa"
    model.bert.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no head for tokens \(cls\.predictions"):
        read_teacher(tmp_path, torch.float32)


def test_the_step_compiles_into_one_graph(tmp_path: Path) -> None:
    config = ObjectiveConfig(name="distil")
    loss = distillation_loss(teacher_of("bert", tmp_path), config, "mlm")
    student = model_of("distilbert", 0)
    compiled = torch.compile(loss.function, fullgraph=True, dynamic=False, backend="aot_eager")
    for found, expected in zip(compiled(student, *ROWS), loss.function(student, *ROWS), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
