"""FLOPs of a step and parameters of a model in closed form, from the config alone. No torch here.

Letters: E width of the model, e width of its embeddings (E but for ALBERT), F width of the feed-forward layer, L
layers, V vocabulary, n_i length of segment i, p_i predictions in it.

Formula (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, PaLM, appendix B), a multiply-add being two FLOPs:

    forward  = 2 (4 E^2 + 2 E F) L tokens            projections and feed-forward
             + 4 E L sum(n_i^2)                      QK^T and PV; half of it in causal models
             + 2 (V e [+ E e]) predictions           vocabulary head [BERT's dense layer before it]
             [+ 2 E e tokens]                        ALBERT: from the embeddings to the width of the model
    training = 3 forward                             the backward pass is two forward passes

In encoders the last of the L blocks counts as follows, since only its keys and values are needed at every token:

    2 (2 E^2) tokens + 2 (2 E^2 + 2 E F) predictions + 4 E sum(p_i n_i)

A head for sentence pairs reads the first token of every pair, where the last block is then computed as well, so that
tokens and pairs are both counted there:

    + 2 (E^2 + 2 E) pairs                            dense layer and two logits

In ModernBERT F counts three times (a gate, its other factor, and the projection back), and a local layer has, for
sum(n_i^2), the pairs of tokens that are no farther apart than its window.

Only what the step must compute is counted: no padding, no attention between segments, no head at positions that
predict nothing, nothing recomputed; embeddings, norms, biases, softmax and dropout are left out. PaLM counts causal
attention in full; here it is halved, since half of it is never needed.
"""

from __future__ import annotations

from pipeline.config.hugging_face import AUTO
from pipeline.config.model import ModelConfig
from pipeline.config.objective import Head
from pipeline.models.auto import counted_shape
from pipeline.models.families import FAMILIES, embedding_size, num_local_layers, num_positions, projects_embeddings


def flops_per_step(
    config: ModelConfig,
    vocab_size: int,
    real_tokens: int,
    sum_squared_lengths: int,
    predictions: int,
    sum_prediction_lengths: int,
    pairs: int = 0,
    token_pairs_in_window: int = 0,
    *,
    head: Head = "tokens",
) -> float:
    """FLOPs of forward and backward over what the counts describe; all of one rank or all of the run.

    Args:
        vocab_size: ids of the tokenizer; ``config.vocab_size`` counts instead where it is set.
        real_tokens: tokens in segments, special tokens included.
        sum_squared_lengths: sum over the segments of their squared length.
        predictions: positions whose logits are needed.
        sum_prediction_lengths: sum over predictions and pairs of the length of their segment.
        pairs: segments whose two parts are judged.
        head: of the class; a discriminator judges every token and predicts none.
        token_pairs_in_window: pairs of tokens that see one another in a local layer.
    """
    rows = config.vocab_size or vocab_size
    config = counted_shape(config, head)
    if config.family == AUTO:
        from pipeline.models.plain_flops import plain_counts, plain_flops

        counted = plain_counts(config, head, rows)
        return plain_flops(counted, head == "causal", real_tokens, sum_squared_lengths, predictions)
    family = FAMILIES[config.family]
    width, inner = config.hidden_size, config.intermediate_size
    if family.has_decoder:
        raise ValueError(f"{config.family} has a decoder: see seq2seq_flops_per_step")
    key_value, others = 2 * (2 * width**2), 2 * (2 * width**2 + (3 if family.gated else 2) * width * inner)
    is_narrow = family.narrow_last_block and head != "discriminator"
    whole = config.num_layers - 1 if is_narrow else config.num_layers
    blocks = (key_value + others) * whole * real_tokens
    local = num_local_layers(config)
    seen = (whole - local) * sum_squared_lengths + local * token_pairs_in_window
    attention = 4 * width * seen / (2 if family.causal else 1)
    if is_narrow:
        blocks += key_value * real_tokens + others * (predictions + pairs)
        attention += 4 * width * sum_prediction_lengths
    narrow = embedding_size(config)
    of_tokens = 2 * (rows * narrow + (width * narrow if family.head_transform else 0)) * predictions
    projection = 2 * narrow * width * real_tokens if projects_embeddings(config) else 0
    of_pairs = 2 * (width**2 + 2 * width) * pairs
    if head == "discriminator":
        of_tokens = 2 * (width**2 + width) * real_tokens
    return 3.0 * (projection + blocks + attention + of_tokens + of_pairs)


def num_parameters(config: ModelConfig, vocab_size: int, pad_id: int = 1, head: Head = "tokens") -> int:
    """Parameters of the stock model, tied ones once.

    Args:
        vocab_size: ids of the tokenizer; ``config.vocab_size`` counts instead where it is set.
        pad_id: id of the padding token, on which RoBERTa's number of positions depends.
        head: of the class.
    """
    if config.family == AUTO:
        from pipeline.models.plain_flops import plain_counts

        return plain_counts(config, head, config.vocab_size or vocab_size).parameters
    family = FAMILIES[config.family]
    width, inner, narrow = config.hidden_size, config.intermediate_size, embedding_size(config)
    rows = config.vocab_size or vocab_size
    types = config.extra.get("type_vocab_size", family.type_vocab_size)
    positions = num_positions(config, pad_id) if family.position_table else 0

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + (outputs if family.biases else 0)

    def norm(size: int) -> int:
        return 2 * size if family.biases else size

    embeddings = (rows + positions + types) * narrow + (norm(narrow) if family.embedding_norm else 0)
    projection = linear(narrow, width) if projects_embeddings(config) else 0
    feed_forward = linear(width, 2 * inner if family.gated else inner) + linear(inner, width)
    block = 4 * linear(width, width) + feed_forward + 2 * norm(width)
    blocks = (1 if family.shared_blocks else config.num_layers) * block
    if family.local_attention is not None:
        blocks -= norm(width)  # ModernBERT's first block follows the norm of the embeddings and has none of its own
    if family.has_decoder:
        # On both sides a table of positions, which begins at 2, and a norm; the decoder's layers attend twice.
        embeddings += (config.max_positions + 4) * width + norm(width)
        blocks += config.num_layers * (8 * linear(width, width) + feed_forward + 3 * norm(width))
    of_tokens = linear(width, narrow) + norm(narrow) + rows if family.head_transform else 0
    heads = {
        "tokens": of_tokens,
        "pairs": of_tokens + linear(width, width) + linear(width, 2),
        "discriminator": linear(width, width) + linear(width, 1),
    }
    return embeddings + projection + blocks + (norm(width) if family.final_norm else 0) + heads[head]


def seq2seq_flops_per_step(
    config: ModelConfig,
    vocab_size: int,
    decoder_tokens: int,
    sum_squared_lengths: int,
    predictions: int,
    encoder_tokens: int,
    sum_squared_encoder_lengths: int,
    sum_cross_products: int,
) -> float:
    """FLOPs of forward and backward of an encoder and a decoder of L layers each, by the formula above:

        encoder = 2 (4 E^2 + 2 E F) L tokens + 4 E L sum(m_i^2)
        decoder = 2 (6 E^2 + 2 E F) L tokens + 4 E L sum(n_i^2) / 2      its own attention, and the queries of the other
                + 2 (2 E^2) L encoder tokens + 4 E L sum(m_i n_i)         keys and values of the encoder
                + 2 V E predictions

    Args:
        sum_squared_lengths: of the decoder's segments n_i.
        sum_squared_encoder_lengths: of the encoder's segments m_i.
        sum_cross_products: of the products of both.
    """
    rows = config.vocab_size or vocab_size
    config = counted_shape(config, "seq2seq")
    if config.family == AUTO:
        from pipeline.models.plain_flops import plain_counts, plain_seq2seq_flops

        return plain_seq2seq_flops(
            plain_counts(config, "seq2seq", rows),
            decoder_tokens,
            sum_squared_lengths,
            predictions,
            encoder_tokens,
            sum_squared_encoder_lengths,
            sum_cross_products,
        )
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_layers
    encoder = 2 * (4 * width**2 + 2 * width * inner) * encoder_tokens + 4 * width * sum_squared_encoder_lengths
    decoder = 2 * (6 * width**2 + 2 * width * inner) * decoder_tokens + 4 * width * sum_squared_lengths / 2
    across = 2 * (2 * width**2) * encoder_tokens + 4 * width * sum_cross_products
    return 3.0 * (layers * (encoder + decoder + across) + 2 * rows * width * predictions)
