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
        request: ``directory``, ``auto_class`` (``AutoModelForMaskedLM`` or ``AutoModelForCausalLM``), ``dtype``,
            ``input_ids`` (``.npy``, int64, all segments joined), ``lengths`` (of the segments), ``logits`` (path to
            write), ``special_ids`` (ids to send through the tokenizer and back).
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
    with torch.no_grad():
        logits = [model(input_ids=segment[None]).logits[0] for segment in segments]
    np.save(request["logits"], torch.cat(logits).numpy())

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


if __name__ == "__main__":
    response = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(response))
