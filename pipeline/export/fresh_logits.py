"""Script of the export gate: what a stranger's process makes of an exported folder.

Run as ``python -I fresh_logits.py request.json response.json``; it must not import this project. Logits of each
segment, one forward a segment through the stock class, go to a ``.npy`` of shape (tokens, vocabulary).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Load, run, report.

    Args:
        request: ``directory``, ``auto_class`` (``AutoModelForMaskedLM``, say), ``dtype``,
            ``outputs`` (their names: logits of the vocabulary; of sentence pairs, if there are), ``logits`` (paths to
            write, one an output), ``input_ids`` (``.npy``, int64, all segments joined), ``lengths`` (of the segments),
            ``decoder_start`` (what a decoder's input begins with; null: there is none),
            ``special_ids`` (ids to send through the tokenizer and back).
    """
    import numpy as np
    import torch
    import transformers

    model, info = getattr(transformers, request["auto_class"]).from_pretrained(
        request["directory"], dtype=getattr(torch, request["dtype"]), output_loading_info=True
    )
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys and name != "error_msgs"}
    if wrong or info.get("error_msgs"):
        raise ValueError(f"the weights do not fit the class: {wrong or info['error_msgs']}")
    segments = torch.from_numpy(np.load(request["input_ids"])).split(request["lengths"])
    start = request["decoder_start"]

    def more(ids: Any) -> dict[str, Any]:
        if start is not None:
            return {"decoder_input_ids": torch.cat([torch.tensor([start]), ids[:-1]])[None]}
        return second_half(ids) if len(request["outputs"]) > 1 else {}

    with torch.no_grad():
        outputs = [model(input_ids=ids[None], **more(ids)) for ids in segments]
    vocabulary, *of_pairs = request["outputs"]
    np.save(request["logits"][0], torch.cat([output[vocabulary][0] for output in outputs]).numpy())
    for name, path in zip(of_pairs, request["logits"][1:], strict=True):
        np.save(path, torch.cat([output[name] for output in outputs]).numpy())

    tokenizer = transformers.AutoTokenizer.from_pretrained(request["directory"])
    tokens = {str(index): tokenizer.convert_ids_to_tokens(index) for index in request["special_ids"]}
    assert not [name for name in sys.modules if name.split(".")[0] == "pipeline"], "this process must be a stranger's"
    return {
        "class_name": type(model).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "mask_token": tokenizer.mask_token,
        "token_ids": {
            name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask", "bos", "eos", "unk")
        },
        "round_trips": {
            index: tokenizer.encode(token, add_special_tokens=False) if token is not None else None
            for index, token in tokens.items()
        },
    }


def second_half(ids: Any) -> dict[str, Any]:
    """Token types of a segment: 1 from its middle on."""
    import torch

    return {"token_type_ids": (torch.arange(len(ids)) >= len(ids) // 2).long()[None]}


if __name__ == "__main__":
    response = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(response))
