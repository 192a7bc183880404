"""The on-disk contract of a corpus: block-record tars, their indexes, the manifest."""
