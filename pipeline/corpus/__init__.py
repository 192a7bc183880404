"""Text -> clean -> tokenizer -> shards: `pretrain corpus build`, on datatrove's executors."""
