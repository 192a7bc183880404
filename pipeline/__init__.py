"""Distributed pretraining of BERT- and GPT-family models: corpus, stream, training, monitoring, export."""
