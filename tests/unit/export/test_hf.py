"""Exports of every kind of model: through the gate in a fresh process, loadable by name, honest about themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.base.errors import UserError
from pipeline.checkpoints.meta import checkpoint_directory
from pipeline.export import fresh_fill_mask, gate, hf, probe
from pipeline.export import run as export_run_module
from pipeline.export.fresh_process import FreshProcessError
from pipeline.export.probe import fill_mask
from pipeline.export.run import export_run
from pipeline.monitor.events import read_events
from pipeline.shards.files import LocalFiles
from pipeline.shards.manifest import read_manifest
from tests.runs import weights_of
from tests.unit.export.export_cases import (
    SEQUENCE_LENGTH,
    make_corpus,
    make_run,
    read_config,
    save_step,
    write_weights,
)

KINDS = ("bert", "bert+nsp", "roberta", "distilbert", "albert", "albert+sop", "modernbert", "bart", "gpt2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``<kind>/run`` and ``<kind>/corpus`` for each kind of model; tests only read them (and append events)."""
    root = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        make_corpus(root / kind / "corpus", kind)
        make_run(root / kind / "run", root / kind / "corpus", kind)
    return root


@pytest.fixture(scope="module")
def exports(runs: Path) -> dict[str, hf.ExportReport]:
    return {kind: export_run(runs / kind / "run", runs / kind / "hf") for kind in KINDS}


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of the BERT run that a test may break."""
    shutil.copytree(runs / "bert" / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("kind", "class_name", "stored_head"),
    [
        ("bert", "BertForMaskedLM", "cls.predictions.bias"),
        ("bert+nsp", "BertForPreTraining", "cls.seq_relationship.weight"),
        ("roberta", "RobertaForMaskedLM", "lm_head.bias"),
        ("distilbert", "DistilBertForMaskedLM", "vocab_projector.bias"),
        ("albert", "AlbertForMaskedLM", "predictions.bias"),
        ("albert+sop", "AlbertForPreTraining", "sop_classifier.classifier.weight"),
        ("modernbert", "ModernBertForMaskedLM", "decoder.bias"),
        ("bart", "BartForConditionalGeneration", "final_logits_bias"),
        ("gpt2", "GPT2LMHeadModel", "transformer.ln_f.weight"),
    ],
)
def test_a_run_becomes_a_stock_model(
    kind: str, class_name: str, stored_head: str, exports: dict[str, hf.ExportReport], runs: Path
) -> None:
    report = exports[kind]
    assert report.max_abs_logit_difference <= 1e-5
    assert report.dtype == "float32"
    assert json.loads(json.dumps(report.facts()))["path"] == str(report.path)
    assert (report.class_name, report.step, report.path) == (class_name, 200, runs / kind / "hf")
    assert report.num_tokens_compared > SEQUENCE_LENGTH
    config = read_config(report.path)
    assert config["architectures"] == [class_name]
    assert "pretrain" not in str(config)
    corpus_vocabulary = read_manifest(LocalFiles(runs / kind / "corpus")).vocab_size
    assert config["vocab_size"] == corpus_vocabulary  # no multiple of 64, to which the loss pads it
    assert corpus_vocabulary % 64
    with safe_open(report.path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
        assert file.metadata() == {"format": "pt"}
        assert {file.get_tensor(name).dtype for name in stored} == {torch.float32}
    checkpoint = weights_of(runs / kind / "run", 200)
    constant = {"final_logits_bias"} if kind == "bart" else set()  # a buffer of its stock class, always 0
    assert stored == set(checkpoint) | constant  # tied weights once, under the name that save_pretrained keeps
    assert stored_head in stored
    assert {path.name for path in report.path.iterdir()} >= {"README.md", "tokenizer.json", "tokenizer_config.json"}
    assert not [path for path in report.path.parent.iterdir() if path.name.startswith(".")]
    event = read_events(runs / kind / "run")[-1]
    assert (event["event"], event["step"], event["path"]) == ("exported", 200, str(report.path))


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_by_auto_classes_with_the_trained_weights(
    kind: str, exports: dict[str, hf.ExportReport], runs: Path
) -> None:
    import transformers

    path = exports[kind].path
    encoder = "AutoModelForPreTraining" if "+" in kind else "AutoModelForMaskedLM"
    name = {"gpt2": "AutoModelForCausalLM", "bart": "AutoModelForSeq2SeqLM"}.get(kind, encoder)
    model = getattr(transformers, name).from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert sum(parameter.numel() for parameter in model.parameters()) == exports[kind].num_parameters
    trained = weights_of(runs / kind / "run", 200)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())
    assert tokenizer.model_max_length == SEQUENCE_LENGTH
    assert len(tokenizer("a " * 500, truncation=True)["input_ids"]) == SEQUENCE_LENGTH


def test_a_model_with_a_head_for_pairs_fills_masks_too(exports: dict[str, hf.ExportReport], runs: Path) -> None:
    """`AutoModelForMaskedLM` leaves the head for pairs out."""
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(exports["bert+nsp"].path)
    assert type(model).__name__ == "BertForMaskedLM"
    trained = weights_of(runs / "bert+nsp" / "run", 200)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items() if name in trained)


def test_the_gate_sees_the_head_for_pairs(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = hf.save_stock

    def save_another(weights: dict[str, torch.Tensor], *arguments: object) -> None:
        name = "cls.seq_relationship.bias"
        save({**weights, name: weights[name] + 0.1}, *arguments)

    monkeypatch.setattr(hf, "save_stock", save_another)
    with pytest.raises(UserError, match="the exported model differs from the trained one"):
        export_run(runs / "bert+nsp" / "run", tmp_path / "hf")


def test_gpt2_generates_without_a_padding_warning(exports: dict[str, hf.ExportReport]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(exports["gpt2"].path)
    settings = model.generation_config
    assert settings.eos_token_id == settings.bos_token_id == settings.pad_token_id == 256
    out = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert out.shape[1] <= 7
    assert not (exports["bert"].path / "generation_config.json").exists()


def test_the_card_has_the_facts_of_the_exported_step(exports: dict[str, hf.ExportReport]) -> None:
    card = (exports["bert"].path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n")
    for fact in (
        "| Steps | 200 of 400 |",
        "| Tokens seen | 51,200 |",
        "| Training loss, last logged | 4.5000 nats a prediction |",
        "| Validation loss | 5.2500 nats a prediction (step 100) |",  # that of step 300 came later
        "| Corpus | random letters |",
        "zero1, 2 ranks",
        "torch 2.13",
        "`model_max_length` is 32",
        "[MASK]",
    ):
        assert fact in card, fact
    causal = (exports["gpt2"].path / "README.md").read_text()
    assert "AutoModelForCausalLM" in causal
    assert "pipeline_tag: text-generation" in causal


def test_masks_are_filled_in_a_fresh_process(exports: dict[str, hf.ExportReport]) -> None:
    sentences = ["the [MASK] .", "a [MASK] b"]
    results = fill_mask(exports["bert"].path, sentences, top_k=3)
    assert [result["sentence"] for result in results] == sentences
    for result in results:
        probabilities = [prediction["probability"] for prediction in result["predictions"]]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1
        assert all(isinstance(prediction["token"], str) for prediction in result["predictions"])


def test_fill_mask_needs_one_mask_a_sentence(
    exports: dict[str, hf.ExportReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exports["bert"].path
    for sentence, count in (("the whale", 0), ("[MASK] [MASK]", 2)):
        with pytest.raises(ValueError, match=rf"exactly one mask token \(\[MASK\]\), this one has {count}: ") as caught:
            fresh_fill_mask.main({"directory": str(path), "sentences": [sentence], "top_k": 3})

    def fail(*_: object) -> None:
        raise FreshProcessError(f"ValueError: {caught.value}")

    monkeypatch.setattr(probe, "run_fresh", fail)
    with pytest.raises(UserError, match=r"fill mask: .* this one has 2.* sentences with one mask each"):
        fill_mask(path, ["[MASK] [MASK]"])


def test_fill_mask_needs_an_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fill mask: .* holds no exported model .*`pretrain export`"):
        fill_mask(tmp_path, ["[MASK]"])


def test_a_step_can_be_chosen(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = gate.GateResult(0.0, "float32", 1, "BertForMaskedLM", 1, "[MASK]")
    monkeypatch.setattr(hf, "compare", lambda *_: passed)
    assert export_run(run, tmp_path / "hf", step=100).step == 100
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    trained = weights_of(run, 100)
    assert all(torch.equal(exported[name], tensor) for name, tensor in trained.items())


def test_a_model_that_differs_is_refused_and_not_published(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_stock = hf.save_stock

    def save_wrongly(*arguments: object) -> None:
        save_stock(*arguments)
        directory = arguments[-1]
        assert isinstance(directory, Path)
        weights = load_file(directory / "model.safetensors")
        weights["bert.embeddings.position_embeddings.weight"][3, 5] += 1.0
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    before = read_events(run)
    monkeypatch.setattr(hf, "save_stock", save_wrongly)
    with pytest.raises(UserError, match=r"export refused: the exported model differs .* allowed 1e-05\. Nothing was"):
        export_run(run, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert read_events(run) == before


def test_a_folder_that_does_not_load_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FreshProcessError("OSError: no file named model.safetensors")

    monkeypatch.setattr(gate, "run_fresh", fail)
    with pytest.raises(
        UserError, match=r"export refused: the exported folder does not load .*: OSError: no file named"
    ):
        export_run(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_rounding_alone_is_settled_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def once(model: torch.nn.Module, *arguments: object) -> gate.GateResult:
        asked.append(arguments[-1])
        difference = {"float32": 3e-5, "float64": in_float64}[str(arguments[-1])]
        return gate.GateResult(difference, str(arguments[-1]), 1, "X", 1, None)

    monkeypatch.setattr(gate, "_compare_once", once)
    in_float64 = 2.9e-5
    with pytest.raises(UserError, match=r"largest absolute difference of logits 2\.9e-05 over 1 tokens in float64"):
        gate.compare(torch.nn.Linear(1, 1), Path(), [np.zeros(1, np.int64)], None)
    asked.clear()
    in_float64 = 1e-13
    result = gate.compare(torch.nn.Linear(1, 1), Path(), [np.zeros(1, np.int64)], None)
    assert asked == ["float32", "float64"]
    assert result.dtype == "float64"


def test_not_a_number_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = gate.GateResult(float("nan"), "float32", 1, "X", 1, None)
    monkeypatch.setattr(gate, "_compare_once", lambda *_: broken)
    with pytest.raises(UserError, match="export refused: the exported model differs"):
        gate.compare(torch.nn.Linear(1, 1), Path(), [np.zeros(1, np.int64)], None)


def test_errors_of_run_step_and_output(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export: .*absent holds no run \(no config\.yaml\)"):
        export_run(tmp_path / "absent", tmp_path / "hf")
    with pytest.raises(
        UserError, match=r"no checkpoint of step 150; there are 100, 200 .*leave --step out for the newest"
    ):
        export_run(run, tmp_path / "hf", step=150)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(UserError, match=r"export: .*taken exists and is not empty\. Name a new directory"):
        export_run(run, tmp_path / "taken")
    with pytest.raises(UserError, match=r"file exists and is not empty"):
        export_run(run, tmp_path / "taken" / "file")
    # A checkpoint without meta.json is one that was never finished.
    for step in (100, 200):
        (run / "checkpoints" / f"step-{step:08d}" / "meta.json").unlink()
    with pytest.raises(
        UserError, match=r"has no checkpoint yet\. One is written every `checkpoint\.every_steps` steps"
    ):
        export_run(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_damaged_checkpoints_are_refused(run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "step-00000200" / "rank-00000.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged \(rank-00000\.safetensors: .*Export another step"):
            export_run(run, tmp_path / "hf")
    path.unlink()
    with pytest.raises(UserError, match=r"step-00000200 is damaged \(rank-00000\.safetensors is missing\)"):
        export_run(run, tmp_path / "hf")
    weights = weights_of(run, 100)
    weights["cls.predictions.bias"][2] = float("nan")
    write_weights(path.parent, weights)
    with pytest.raises(UserError, match=r"no numbers \(NaN or infinite\) in cls\.predictions\.bias: the run diverged"):
        export_run(run, tmp_path / "hf")


def test_weights_that_do_not_fit_are_named(run: Path, tmp_path: Path) -> None:
    weights = weights_of(run, 200)
    del weights["bert.encoder.layer.1.output.dense.bias"]
    weights["bert.pooler.dense.bias"] = torch.zeros(32)
    weights["bert.embeddings.word_embeddings.weight"] = torch.zeros(90, 32)
    write_weights(checkpoint_directory(run, 200), weights)
    with pytest.raises(UserError) as caught:
        export_run(run, tmp_path / "hf")
    message = str(caught.value)
    assert "do not fit BertForMaskedLM" in message
    assert "missing: bert.encoder.layer.1.output.dense.bias" in message
    assert "unknown: bert.pooler.dense.bias" in message
    assert "of another shape: bert.embeddings.word_embeddings.weight is (90, 32), not (60, 32)" in message
    assert "Restore the config.yaml" in message


def test_another_corpus_or_tokenizer_is_refused(run: Path, runs: Path, tmp_path: Path) -> None:
    make_corpus(tmp_path / "other", "bert", seed=1)
    with pytest.raises(
        UserError,
        match=r"was trained on the corpus with fingerprint [0-9a-f]{64}, but .*other has .*--corpus DIR",
    ):
        export_run(run, tmp_path / "hf", corpus=tmp_path / "other")
    with pytest.raises(UserError, match=r"the run.s corpus is not at .*nowhere .*--corpus DIR"):
        export_run(run, tmp_path / "hf", corpus=tmp_path / "nowhere")
    shutil.copytree(runs / "bert" / "corpus", tmp_path / "changed")
    tokenizer = tmp_path / "changed" / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("whale", "shark"))
    with pytest.raises(UserError, match=r"tokenizer\.json has sha256 .*token ids would mean other text"):
        export_run(run, tmp_path / "hf", corpus=tmp_path / "changed")


def test_a_larger_embedding_than_the_tokenizer_is_exported_and_a_smaller_one_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from pipeline.config.loading import load_run_config, to_yaml
    from pipeline.shards.files import corpus_files

    config = load_run_config(run / "config.yaml")
    manifest = read_manifest(corpus_files(config.data.corpus))
    monkeypatch.setattr(hf, "compare", lambda *_: gate.GateResult(0.0, "float32", 1, "BertForMaskedLM", 1, "[MASK]"))
    for vocab_size in (64, 59):
        changed = dataclasses.replace(
            config,
            run_directory=str(tmp_path / str(vocab_size)),
            model=dataclasses.replace(config.model, vocab_size=vocab_size),
        )
        if vocab_size == 64:
            save_step(changed, manifest, 7)
            (tmp_path / "64" / "config.yaml").write_text(to_yaml(changed))
            export_run(tmp_path / "64", tmp_path / "hf")
            assert read_config(tmp_path / "hf")["vocab_size"] == 64
        else:
            (run / "config.yaml").write_text(to_yaml(changed))
            with pytest.raises(UserError, match=r"model\.vocab_size: 59 is smaller than the tokenizer .* 60 ids"):
                export_run(run, tmp_path / "refused")


def test_a_run_that_cannot_be_written_to_is_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hf, "compare", lambda *_: gate.GateResult(0.0, "float32", 1, "BertForMaskedLM", 1, "[MASK]"))
    monkeypatch.setattr(export_run_module, "append_event", read_only)
    assert export_run(run, tmp_path / "hf").path.is_dir()
