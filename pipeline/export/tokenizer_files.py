"""The corpus's tokenizer, copied into an export and told how long the model's inputs may be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipeline.base.files import read_json
from pipeline.shards.files import CorpusFiles

CONFIG_NAME = "tokenizer_config.json"


def copy_tokenizer(files: CorpusFiles, output: Path, max_length: int) -> None:
    """Copy the tokenizer's files of a corpus and set ``model_max_length``.

    Without it a long text is neither cut by ``truncation=True`` nor refused before the position embedding runs out.

    Raises:
        UserError: the tokenizer's config is not valid JSON.
    """
    for path in sorted(files.tokenizer_directory().iterdir()):
        if path.is_file() and not path.name.startswith("."):
            shutil.copyfile(path, output / path.name)
    path = output / CONFIG_NAME
    config = read_json(path, "tokenizer config") if path.exists() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["model_max_length"] = max_length
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
