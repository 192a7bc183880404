"""The card says what is known, leaves out what is not, and is valid Markdown with YAML in front."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.objective import TaskConfig
from pipeline.export.model_card import ModelFacts, RunFacts, model_card
from pipeline.models.families import generator_config
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


def card_of(
    kind: str = "bert",
    *,
    model: ModelFacts = MODEL,
    facts: RunFacts | None = None,
    start: str | None = None,
    **task: Any,
) -> str:
    """Of a run of a family with another objective, or its mixture."""
    config = run_config(Path("run"), Path("corpus"), kind)
    config = replace(
        config,
        objective=replace(config.objective, **task),
        start=replace(config.start, from_pretrained=start),
    )
    return model_card(config, RunFacts("tiny", 10) if facts is None else facts, model)


BART = ModelFacts("BartForConditionalGeneration", "AutoModelForSeq2SeqLM", 1_234_567, 30_522, "<mask>")
ELECTRA = ModelFacts("ElectraForPreTraining", "AutoModelForPreTraining", 1_234_567, 30_522, "[MASK]")


def test_denoising_names_the_noise_that_is_set_and_nothing_else() -> None:
    card = card_of("bart", model=BART, permute_sentences=0.0, deletion_rate=0.05, rotation=0.2)
    assert (
        "| Objective | denoising: 30% of the tokens in spans (of 3 on average) that become one mask token each; 5% of "
        "the tokens left out; 20% of the texts rotated to begin at a random token; the decoder predicts the whole "
        "clean text |"
    ) in card
    mass = card_of("bart", model=BART, permute_sentences=0.0, infilling_rate=0.0, span_mask_rate=0.5, predict="masked")
    assert (
        "| Objective | denoising: one span of 50% of every text hidden token by token (80% masked, 10% random, 10% "
        "kept); the decoder predicts the tokens of the span only |"
    ) in mass


def test_pairs_are_told_beside_the_masks() -> None:
    masks = "15% of the tokens, of these 80% masked, 10% random, 10% kept"
    assert f"{masks}; and next-sentence prediction: whether the second part" in card_of(name="mlm+nsp")
    assert f"{masks}; and sentence-order prediction: whether the two parts" in card_of("albert", name="mlm+sop")


def test_distillation_names_teacher_temperature_and_weights() -> None:
    card = card_of("distilbert", name="distil", teacher="somewhere/teacher-x", cosine_weight=0.0, temperature=3.0)
    assert (
        "distillation of `teacher-x`, temperature 3, with weights 2 (the true tokens), 5 (the teacher's distribution), "
        "at the predictions of masked language modelling: 15% of the tokens"
    ) in card
    causal = card_of("gpt2", name="distil", teacher="teacher-x")
    assert "1 (the last hidden states), at the predictions of causal language modelling |" in causal


def test_replaced_tokens_say_which_part_this_is() -> None:
    facts = RunFacts(
        "tiny", 10, training_loss=40.0, validation_loss=38.5, validation_step=10,
        validation_terms={"mlm": 6.25, "rtd": 0.645}, training_terms={"mlm": 6.5, "rtd": 0.67},
    )  # fmt: skip
    discriminator = card_of("electra", model=ELECTRA, facts=facts, name="rtd")
    for text in (
        "trained from scratch by telling tokens that a small model had replaced",
        "the discriminator, with weight 50 beside the generator's 1, tells",
        "This is the discriminator |",
        "| Validation loss | 38.5000, the weighted sum of the terms: mlm 6.2500, rtd 0.6450 (step 10) |",
        "| Training loss, last logged | 40.0000, the weighted sum of the terms: mlm 6.5000, rtd 0.6700 |",
        "| 2, 32, 2, 64 |",
    ):
        assert text in discriminator, text
    shape = generator_config(run_config(Path("run"), Path("corpus"), "electra").model)
    own = ModelFacts("ElectraForMaskedLM", "AutoModelForMaskedLM", 999, 30_522, "[MASK]", shape, is_generator=True)
    generator = card_of("electra", model=own, facts=facts, name="rtd")
    for text in (
        "by predicting masked tokens, as the generator of replaced-token detection on",
        "This is the generator |",
        "| Validation loss | 6.2500 nats a prediction (of the generator) (step 10) |",
        "| 2, 8, 1, 16 |",
    ):
        assert text in generator, text
    assert "38.5" not in generator
    assert "pooler" not in discriminator + generator


def test_a_mixture_has_its_labels_and_the_loss_of_each() -> None:
    facts = RunFacts(
        "tiny", 10, training_loss=5.0, training_terms={"dense": 5.0}, validation_loss=4.5, validation_step=10,
        validation_terms={"mlm": 4.0, "dense": 5.0},
    )  # fmt: skip
    card = card_of(facts=facts, mixture=[TaskConfig(weight=3.0), TaskConfig(label="dense", mask_rate=0.4)])
    assert "75% of the steps (mlm) masked language modelling: 15%" in card
    assert "; 25% of the steps (dense) masked language modelling: 40%" in card
    assert "4.5000, the mean of the objectives by weight: mlm 4.0000, dense 5.0000 (step 10) |" in card
    assert "5.0000, of the objective of that step: dense 5.0000 |" in card


def test_the_limits_are_those_of_the_family() -> None:
    restored = card_of("bart", model=BART)
    assert "- It restores noisy text: tune it" in restored
    for absent in ("It is an encoder", "pooler", "It continues text"):
        assert absent not in restored
    assert "it has no pooler, and token type 1 was not trained here." in card_of("bert")
    assert "it has no pooler.\n" in card_of("roberta")
    assert "pooler" not in card_of("bert", name="mlm+nsp")
    for family in ("distilbert", "modernbert", "electra"):
        card = card_of(family, name="mlm")
        assert "It is an encoder" in card
        assert "pooler" not in card


def test_nothing_is_said_of_values_that_the_run_did_not_make() -> None:
    for card in (card_of("modernbert"), card_of("bert", start="weights/of-another")):
        assert "random initial values" not in card
        assert "Longer ones (up to 48 tokens) were not trained here" in card
    assert "of the model that it began from" in card
