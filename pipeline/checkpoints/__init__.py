"""Checkpoints on disk: their files, who writes them, which are kept, which are intact."""
