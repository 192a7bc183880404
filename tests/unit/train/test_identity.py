"""What differs from the checkpoint's run is refused with both values, unless the user names it."""

from __future__ import annotations

import re

import pytest

from pipeline.base.errors import UserError
from pipeline.train.identity import check_identity

SAVED = {"corpus_fingerprint": "a", "seed": 0, "optimizer.learning_rate": 1e-3, "gone": 1}
PRESENT = {"corpus_fingerprint": "b", "seed": 0, "optimizer.learning_rate": 2e-3, "new": 2}
CORPUS = "  - corpus_fingerprint: checkpoint 'a', now 'b'"
RATE = "  - optimizer.learning_rate: checkpoint 0.001, now 0.002"


def test_every_difference_is_shown() -> None:
    text = re.escape(
        f"step-00000010 belongs to another run:\n{CORPUS}\n{RATE}\n"
        "  - new: checkpoint '(absent)', now 2\n  - gone: checkpoint 1, now '(absent)'\n"
        "Restore these values to resume it"
    )
    with pytest.raises(UserError, match=f"{text}.*--accept-change KEY"):
        check_identity(SAVED, PRESENT, "step-00000010")
    assert check_identity(SAVED, dict(SAVED), "step-00000010") == {}


def test_accepted_differences_pass_and_are_told() -> None:
    with pytest.raises(UserError) as refused:
        check_identity(SAVED, PRESENT, "step-00000010", ["corpus_fingerprint", "new", "gone"])
    assert RATE in str(refused.value)
    assert CORPUS not in str(refused.value)
    changes = check_identity(SAVED, PRESENT, "c", ["corpus_fingerprint", "optimizer.learning_rate", "new", "gone"])
    assert changes == {
        "corpus_fingerprint": {"checkpoint": "a", "now": "b"},
        "optimizer.learning_rate": {"checkpoint": 1e-3, "now": 2e-3},
        "new": {"checkpoint": "(absent)", "now": 2},
        "gone": {"checkpoint": 1, "now": "(absent)"},
    }
    assert check_identity(SAVED, dict(SAVED), "c", ["seed"]) == {}, "a requeued job goes on accepting"


def test_a_key_that_is_none() -> None:
    with pytest.raises(
        UserError, match=r"--accept-change: `optimizer\.rate` is nothing .*Did you mean `optimizer\.learning_rate`\?"
    ):
        check_identity(SAVED, SAVED, "c", ["optimizer.rate"])


def test_what_an_older_checkpoint_does_not_name_has_its_default() -> None:
    present = {**SAVED, "objective.mask_copies": None, "stream.context_tokens": 0}
    assert check_identity(SAVED, present, "c") == {}
    for key, value in (("objective.mask_copies", 1), ("stream.context_tokens", 8)):
        with pytest.raises(UserError, match=rf"{re.escape(key)}: checkpoint (None|0), now {value}"):
            check_identity(SAVED, {**SAVED, key: value}, "c")
