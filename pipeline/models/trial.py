"""What a class of family `auto` can do, found out with a few layers of it and random weights on the CPU, in fp32.

Letters: T tokens of all texts, V vocabulary, S slots of a row.

Packed is what gives every text of one packed row the logits that the stock class gives it alone; a class that has no
way to be told of the texts, or whose attention wants what ours does not know, runs padded. Nothing is taken on trust:
neither the class's own flags, nor that it is causal, nor that its logits are those of its output embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head
from pipeline.models.attention import packed_attention
from pipeline.models.auto import auto_config, class_of, one_line
from pipeline.models.families import Family
from pipeline.models.hooks import prepare_packed, set_family
from pipeline.models.last_block import POSITIONS
from pipeline.models.packed import packed_logits, packed_seq2seq_logits
from pipeline.models.padded import padded_logits, padded_seq2seq_logits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOLERANCE: Final = 1e-4
"""Of the largest logit. Rounding in fp32 does less, a text that sees another does far more."""

NO_INTERFACE: Final = "its attention does not go through transformers' attention interface"
_ATTENTION: Final = "pretrain_trial"
_LENGTHS: Final = (7, 12, 5, 9)
_WINDOW: Final = 6
"""Shorter than most of the texts: a window that is not kept must show."""

ROWS: Final = 64
SPECIAL_IDS: Final = {"pad": 1, "bos": 0, "eos": 2, "cls": 0, "sep": 2, "unk": 3, "mask": 4}
_FIRST_ID: Final = 5
_LAYERS: Final = 2
_SEED: Final = 0x7E57
_MOST_EXPERTS: Final = 4
_EXPERT_KEYS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_WINDOW_KEYS: Final = ("sliding_window", "local_attention", "window_size", "attention_window")

_KNOWN_KEYWORDS: Final = frozenset(
    inspect.signature(packed_attention).parameters.keys()
    | {
        # What changes no number of the attention.
        "position_ids", "use_cache", "cache_position", "max_length_k", "deterministic", "return_dict",
        "output_attentions", "output_hidden_states", "output_router_logits", "encoder_hidden_states",
        "past_key_values", "position_embeddings", "logits_to_keep", POSITIONS,
    }
)  # fmt: skip


class _NotPackedError(Exception):
    """Why a class does not run packed."""


@dataclass
class _Recorder:
    """The attention function of the trial: ours, which notes that it ran and refuses what it does not know."""

    calls: int = 0

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **keywords: Any
    ) -> tuple[Tensor, None]:
        self.calls += 1
        if mask is not None:
            raise _NotPackedError("its attention is given a mask or a bias of its own")
        for name, given in keywords.items():
            if given is not None and name not in _KNOWN_KEYWORDS:
                raise _NotPackedError(f"its attention is given `{name}`, which packed attention does not know")
        return packed_attention(module, query, key, value, mask, **keywords)


def try_out(config: ModelConfig, head: Head, known: Family | None) -> Family:
    """The table entry of a class.

    Args:
        known: of the table, if it has the class: then only whether it holds with this config is tried.

    Raises:
        UserError: the class cannot be trained here: its forward fails on plain text, it has no output embeddings, or
            is to predict next tokens and sees them.
    """
    from transformers import AttentionInterface
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    recorder = _Recorder()
    AttentionInterface.register(_ATTENTION, recorder)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
            torch.manual_seed(_SEED)
            return _Trial(config, head, known, recorder).entry()
    finally:
        logging.set_verbosity(verbosity)


class _Trial:
    """One model, and what the stock class makes of every text by itself."""

    def __init__(self, config: ModelConfig, head: Head, known: Family | None, recorder: _Recorder) -> None:
        self.head, self.recorder, self.known = head, recorder, known
        self.narrow = config.drop_ins
        self.model = small_model(config, head, ROWS, SPECIAL_IDS)
        self.what = f"model.config: {type(self.model).__name__}"
        self.signature = inspect.signature(self.model.forward).parameters
        self.arguments = {"use_cache": False} if "use_cache" in self.signature else {}
        self.texts = [torch.randint(_FIRST_ID, ROWS, (length,)) for length in _LENGTHS]
        if head == "masked":
            for number, text in enumerate(self.texts):  # as unequally as in training: a class may count them (ESM)
                text[2 : 3 + 2 * number : 2] = SPECIAL_IDS["mask"]
        set_implementation(self.model, "eager")
        self.head_entry, is_linear = self._output_embeddings()
        self.alone, logits_of_head = self._run_alone()
        self.logits_after_head = not (is_linear and logits_of_head)
        self.scale = float(max(logits.abs().max() for logits in self.alone))

    def entry(self) -> Family:
        """What is found."""
        if self.head == "causal":
            self._check_causality()
        entry = self.known or Family(
            model_class=type(self.model).__name__,
            config_class=type(self.model.config).__name__,
            output_norm="",
            head_entry=self.head_entry,
            config_names={},
            forward_arguments=self.arguments,
            causal=self.head == "causal",
            has_decoder=self.head == "seq2seq",
            logits_after_head=self.logits_after_head,
        )
        try:
            return self._packed(entry)
        except _NotPackedError as error:
            return self._padded(entry, str(error))

    def _output_embeddings(self) -> tuple[str, bool]:
        layer = self.model.get_output_embeddings()
        names = [name for name, module in self.model.named_modules() if module is layer and layer is not None]
        if not names:
            raise UserError(
                f"{self.what} has no output embeddings that predicted positions could be chosen before; it cannot be "
                "trained here."
            )
        return names[0], type(layer) is nn.Linear

    def _inputs(self, text: Tensor) -> dict[str, Tensor]:
        rows = {"input_ids": text[None]}
        return {**rows, "decoder_input_ids": text.flip(0)[None]} if self.head == "seq2seq" else rows

    def _run_alone(self) -> tuple[list[Tensor], bool]:
        """Logits of every text (n, V), and whether they are what the head's last layer returned."""
        seen: list[Tensor] = []
        hook = self.model.get_submodule(self.head_entry).register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            logits = [self.model(**self._inputs(text), **self.arguments).logits for text in self.texts]
        except Exception as error:
            raise UserError(f"{self.what} does not run on a row of plain text ({one_line(error)}).") from None
        finally:
            hook.remove()
        if any(own.dim() != 3 or own.shape[:2] != (1, len(text)) for own, text in zip(logits, self.texts, strict=True)):
            raise UserError(f"{self.what} returns no logits for every token; it cannot be trained here.")
        equal = len(seen) == len(logits) and all(map(torch.equal, seen, logits))
        return [own[0] for own in logits], equal

    def _check_causality(self) -> None:
        text = self.texts[1].clone()
        text[-1] = _FIRST_ID + (text[-1] - _FIRST_ID + 1) % (ROWS - _FIRST_ID)
        logits = self.model(input_ids=text[None], **self.arguments).logits[0]
        if (logits[:-1] - self.alone[1][:-1]).abs().max() > TOLERANCE * self.scale:
            raise UserError(
                f"{self.what} sees the tokens that objective `clm` predicts; set what makes it causal in the config, "
                "or take objective `mlm`."
            )

    def _packed(self, entry: Family) -> Family:
        """The entry if the class runs packed.

        Raises:
            _NotPackedError: it does not.
        """
        if entry.padded is not None:
            raise _NotPackedError(entry.padded)
        if self.head == "seq2seq" and self.known is None:
            raise _NotPackedError("positions of two packed rows are known of the families of the table only")
        if not self.model._can_set_attn_implementation():
            raise _NotPackedError(NO_INTERFACE)
        if "position_ids" not in self.signature and not entry.position_hooks:
            raise _NotPackedError("its forward takes no position_ids")
        set_implementation(self.model, _ATTENTION)
        differences = []
        for follow_padding in [entry.positions_follow_padding] if self.known else [False, True]:
            tried = replace(entry, positions_follow_padding=follow_padding)
            differences.append(self._difference(self._packed_logits(tried)))
            if differences[-1] <= TOLERANCE:
                return tried
        raise _NotPackedError(f"texts in one row come out {min(differences):.0e} of the largest logit apart")

    def _packed_logits(self, entry: Family) -> list[Tensor]:
        set_family(self.model, entry)
        prepare_packed(self.model, narrow=self.narrow)
        total = sum(_LENGTHS)
        cu_seqlens = torch.tensor([0, *torch.tensor(_LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
        positions = torch.cat([torch.arange(length) for length in _LENGTHS])
        ids = torch.cat(self.texts)[None]
        self.recorder.calls = 0
        try:
            if self.head == "seq2seq":
                decoder_ids = torch.cat([text.flip(0) for text in self.texts])[None]
                row = (positions, cu_seqlens)
                logits = packed_seq2seq_logits(
                    self.model, ids, *row, decoder_ids, *row, max(_LENGTHS), torch.arange(total)
                )
            else:
                logits = packed_logits(self.model, ids, positions[None], cu_seqlens, max(_LENGTHS), torch.arange(total))
        except _NotPackedError:
            raise
        except Exception as error:  # whatever a class of another project does with what it does not expect
            raise _NotPackedError(f"a packed row fails: {one_line(error)}") from None
        if self.recorder.calls == 0:
            raise _NotPackedError(NO_INTERFACE)
        if logits.shape != (total, self.alone[0].shape[1]):
            raise _NotPackedError("it returns other logits than those of the predicted positions")
        return list(logits.split(_LENGTHS))

    def _padded(self, entry: Family, reason: str) -> Family:
        """The entry of a class that runs padded, for this reason.

        Raises:
            UserError: it does not run padded either.
        """
        set_implementation(self.model, None)
        entry = replace(entry, padded=reason, positions_follow_padding=False)
        set_family(self.model, entry)
        prepare_packed(self.model)
        length = max(_LENGTHS)
        is_real = torch.arange(length) < torch.tensor(_LENGTHS)[:, None]  # R S
        ids = torch.full((len(_LENGTHS), length), SPECIAL_IDS["pad"])
        ids[is_real] = torch.cat(self.texts)
        positions = is_real.flatten().nonzero().flatten()
        try:
            if self.head == "seq2seq":
                decoder_ids = torch.full_like(ids, SPECIAL_IDS["pad"])
                decoder_ids[is_real] = torch.cat([text.flip(0) for text in self.texts])
                logits = padded_seq2seq_logits(self.model, ids, is_real, decoder_ids, is_real, positions)
            else:
                logits = padded_logits(self.model, ids, is_real, positions)
        except Exception as error:
            raise UserError(f"{self.what} does not run on padded rows ({one_line(error)}).") from None
        if logits.shape != (len(positions), self.alone[0].shape[1]):
            raise UserError(
                f"{self.what} returns other logits than those of the predicted positions; it cannot be trained here."
            )
        if self._difference(list(logits.split(_LENGTHS))) > TOLERANCE:
            return replace(entry, padded=f"{reason}; what it says of a text changes with the padding behind it")
        return entry

    def _difference(self, logits: list[Tensor]) -> float:
        """Largest difference from what every text gives alone, as a share of the largest logit."""
        apart = [(own - other).abs().max() for own, other in zip(logits, self.alone, strict=True)]
        return float(max(apart)) / self.scale


def set_implementation(model: PreTrainedModel, name: str | None) -> None:
    """Have a stock model call the attention function of that name, where it calls any by its name; None: its own."""
    if model._can_set_attn_implementation():
        own = name or ("sdpa" if model._supports_sdpa else "eager")
        cast("Any", model).set_attn_implementation(own)


def small_model(config: ModelConfig, head: Head, rows: int, special_ids: Mapping[str, int]) -> PreTrainedModel:
    """A few layers of the class with ``rows`` ids, in evaluation mode, with weights that leave nothing at 0 or 1.

    Raises:
        UserError: see :func:`pipeline.models.auto.auto_config`; or the class cannot be made.
    """
    import transformers

    whole = auto_config(config, head, rows, special_ids)
    model_class = getattr(transformers, class_of(whole, head))
    model: PreTrainedModel | None = None
    for changes in (_fewer_layers(whole), {}):
        try:
            model = model_class(auto_config(config, head, rows, special_ids, **_narrowed(whole), **changes))
            break
        except UserError:
            if not changes:
                raise
        except Exception as error:
            if not changes:
                raise UserError(f"model.config: {model_class.__name__} cannot be made: {one_line(error)}.") from None
    assert model is not None
    for name, parameter in model.float().eval().named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() > 1:
            parameter.copy_(noise * (0.5 if "embed" in name.lower() else 1.2 * parameter.shape[-1] ** -0.5))
        else:
            parameter.add_(0.2 * noise)
    return model


def _fewer_layers(config: PreTrainedConfig) -> dict[str, Any]:
    """Keys for a model with one layer of every kind, at least two; empty where the config does not tell layers."""
    names = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers")}
    names |= {"encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"}
    counts = {name: getattr(config, name, None) for name in names}
    counts = {name: count for name, count in counts.items() if isinstance(count, int) and count > _LAYERS}
    if len(set(counts.values())) != 1:
        return {}
    total = next(iter(counts.values()))
    kinds = getattr(config, "layer_types", None)
    chosen = list(range(_LAYERS))
    if isinstance(kinds, list) and len(kinds) == total:
        chosen = sorted({*chosen, *(kinds.index(kind) for kind in dict.fromkeys(kinds))})
    of_layers = {
        name: [value[place] for place in chosen]
        for name, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == total
    }
    return {**of_layers, **dict.fromkeys(counts, len(chosen))}


def _narrowed(config: PreTrainedConfig) -> dict[str, Any]:
    """Keys that make windows shorter than the texts, and experts few."""
    keys: Mapping[str, Any] = config.to_dict()
    windows = {
        name: _WINDOW for name in _WINDOW_KEYS if isinstance(keys.get(name), int) and not isinstance(keys[name], bool)
    }
    experts = {
        name: min(keys[name], _MOST_EXPERTS) for name in _EXPERT_KEYS if isinstance(keys.get(name), int) and keys[name]
    }
    if experts and isinstance(keys.get("num_experts_per_tok"), int):
        experts["num_experts_per_tok"] = min(keys["num_experts_per_tok"], 2)
    return {**windows, **experts}
