"""What makes two runs the same run: compared when a run directory is entered again."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base.errors import UserError
from pipeline.config.loading import leaves, to_plain
from pipeline.config.run import RunConfig

FREE_KEYS = (
    "run_directory",
    # Where corpora lie is free; what they hold, and how the stream mixes and leaves out, is compared as `stream.*`.
    "data.corpus",
    "data.mixture",
    "data.mixture_exponent",
    "data.exclude",
    "data.packing",
    "data.context_tokens",
    "data.open_shards",
    "data.sequence_length",
    "data.cache.",
    "train.global_batch_size",
    "train.stages",
    "train.batch_warmup.",
    "data.workers",
    "data.prefetch_steps",
    "train.steps",
    "train.micro_batch_size",
    "train.strategy",
    "train.zero3_persistence_threshold",
    "train.device",
    "train.compile",
    "train.compile_mode",
    "train.compile_cache",
    "train.activation_checkpointing",
    "train.offload_optimizer",
    "model.drop_ins",
    "train.threads_per_rank",
    "train.matmul_precision",
    "train.hang_timeout_seconds",
    "train.slow_timeout_seconds",
    "train.lock_timeout_seconds",
    "checkpoint.",
    "evaluation.",
    "monitor.",
)
"""Keys that may change between restarts: they change how a step is computed or watched, not which step it is.
``train.steps`` may be raised to train on; a decaying schedule then follows the new length from the resumed step."""


_MEANING = {
    "stream.context_tokens": "data.context_tokens",
    "stream.exclusions": "digest of data.exclude as far as it counts by then; entries added now need a later from_step",
    "stream.sources": "fingerprint, share of the rows and epochs of every corpus",
    "stream.stages": "of every stage begun by then: steps before it, rows a step, tokens a row",
    "train.skip_steps": "up to then",
}
"""What values are that do not speak for themselves."""

_ABSENT = "(absent)"

_STREAM_DEFAULTS = {"stream.context_tokens": 0}
"""Settings of the stream that have come after its first version, as they were before."""


def run_identity(
    config: RunConfig, corpus_fingerprint: str, stream_settings: Mapping[str, Any], step: int
) -> dict[str, Any]:
    """Everything that must be equal for a resume, as flat JSON values.

    Args:
        corpus_fingerprint: of the (first) corpus, by which an export knows it.
        stream_settings: of the steps up to the resumed one, from ``RowStream.settings_before``.
        step: the resumed one.
    """
    return {
        "corpus_fingerprint": corpus_fingerprint,
        **{f"stream.{key}": value for key, value in stream_settings.items()},
        **_settings(config),
        "train.skip_steps": sorted({skipped for skipped in config.train.skip_steps if skipped <= step}),
    }


def _settings(config: RunConfig) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in leaves(to_plain(config)).items()
        if not any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE_KEYS)
    }


def check_identity(
    saved: dict[str, Any], present: dict[str, Any], checkpoint: str, accepted: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Refuse to resume another run. What a checkpoint of an older version does not name has its default there: a new
    setting changes nothing unless it is set.

    Args:
        accepted: keys that may differ all the same.

    Returns:
        The accepted differences: key -> ``checkpoint`` and ``now``, the two values.

    Raises:
        UserError: with every difference that is not accepted, both values, and the way out; or a key in ``accepted``
            is none.
    """
    keys = [*present, *(key for key in saved if key not in present)]
    for key in accepted:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise UserError(f"--accept-change: `{key}` is nothing that a resume compares.{hint}")
    saved = {**_STREAM_DEFAULTS, **_settings(RunConfig()), **saved}
    differences = {
        key: {"checkpoint": saved.get(key, _ABSENT), "now": present.get(key, _ABSENT)}
        for key in keys
        if saved.get(key, _ABSENT) != present.get(key, _ABSENT)
    }
    lines = [
        f"  - {key}: checkpoint {values['checkpoint']!r}, now {values['now']!r}"
        + (f" ({_MEANING[key]})" if key in _MEANING else "")
        for key, values in differences.items()
        if key not in accepted
    ]
    if lines:
        raise UserError(
            f"{checkpoint} belongs to another run:\n" + "\n".join(lines) + "\n"
            "Restore these values to resume it, or start a new run with another run_directory. To go on with a changed "
            "value all the same, name its key: --accept-change KEY (once for each)."
        )
    return differences
