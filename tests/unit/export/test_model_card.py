"""The card says what is known, leaves out what is not, and is valid Markdown with YAML in front."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from pipeline.export.model_card import ModelFacts, RunFacts, model_card
from tests.unit.export.export_cases import run_config

MODEL = ModelFacts("BertForMaskedLM", "AutoModelForMaskedLM", 1_234_567, 30_522, "[MASK]")


def test_unknown_facts_are_left_out() -> None:
    card = model_card(run_config(Path("run"), Path("corpus"), "bert"), RunFacts("tiny", 10), MODEL)
    for absent in ("Tokens seen", "Training loss", "Validation loss", "Corpus fingerprint", "Versions", "None"):
        assert absent not in card.replace("None is stated here", ""), absent
    assert "# tiny" in card
    assert "1,234,567 parameters" in card


def test_front_matter_is_yaml_and_names_no_licence() -> None:
    card = model_card(run_config(Path("run"), Path("corpus"), "bert"), RunFacts("tiny", 10), MODEL)
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["bert", "trained-from-scratch"],
    }
    assert "The author of the model chooses one" in body


def test_every_table_row_has_two_cells_and_pipes_are_escaped() -> None:
    facts = RunFacts("tiny", 10, sources=["a|b", "c"], versions={"torch": "2.13"})
    card = model_card(run_config(Path("run"), Path("corpus"), "bert"), facts, MODEL)
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert "| Corpus | a\\|b, c |" in rows
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)


def test_the_masking_recipe_adds_up() -> None:
    card = model_card(run_config(Path("run"), Path("corpus"), "bert"), RunFacts("tiny", 10), MODEL)
    assert "15% of the tokens, of these 80% masked, 10% random, 10% kept" in card


def test_masking_of_words_and_attention_across_documents_are_told() -> None:
    config = run_config(Path("run"), Path("corpus"), "bert")
    assert "; no attention across documents" in model_card(config, RunFacts("tiny", 10), MODEL)
    config = replace(
        config,
        data=replace(config.data, cross_document_attention=True),
        objective=replace(config.objective, masking="whole_word"),
    )
    card = model_card(config, RunFacts("tiny", 10), MODEL)
    assert "15% of the tokens in whole words, of these 80% masked" in card
    assert "; attention across documents" in card
