"""Script that fills masks with an exported folder, as a stranger would.

Run as ``python -I fresh_fill_mask.py request.json response.json``; it must not import this project.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Fill the one mask of each sentence.

    Args:
        request: ``directory``, ``sentences`` (``[MASK]`` stands for any tokenizer's mask token), ``top_k``.
    """
    import torch
    import transformers

    model = transformers.AutoModelForMaskedLM.from_pretrained(request["directory"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(request["directory"])
    results = []
    for sentence in request["sentences"]:
        inputs = tokenizer(
            sentence.replace("[MASK]", tokenizer.mask_token), return_tensors="pt", return_token_type_ids=False
        )
        (places,) = torch.where(inputs["input_ids"][0] == tokenizer.mask_token_id)
        if len(places) != 1:
            raise ValueError(
                f"a sentence needs exactly one mask token ({tokenizer.mask_token}), "
                f"this one has {len(places)}: {sentence!r}"
            )
        with torch.no_grad():
            logits = model(**inputs).logits[0, places[0]]
        top = logits.softmax(-1).topk(min(request["top_k"], len(logits)))
        predictions = [
            {"token": str(tokenizer.decode([index])).strip(), "probability": probability}
            for index, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        results.append({"sentence": sentence, "predictions": predictions})
    assert not [name for name in sys.modules if name.split(".")[0] == "pipeline"], "this process must be a stranger's"
    return results


if __name__ == "__main__":
    response = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(response))
