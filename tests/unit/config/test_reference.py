"""The page of the config is the config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.config.reference import field_docstrings, reference_page


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs/configuration.md"
    assert page.read_text(encoding="utf-8") == reference_page(), "python -m pipeline.config.reference > " + str(page)


def test_a_field_without_a_docstring_is_an_error() -> None:
    @dataclass
    class Bare:
        """A section."""

        key: int = 1

    with pytest.raises((ValueError, IndentationError)):
        field_docstrings(Bare)
