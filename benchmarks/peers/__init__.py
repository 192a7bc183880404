"""The loaders that ours is measured against, each set up as its documentation advises for speed.

Every peer is given our packed rows of 512 tokens, so that it has no packing to do, and shuffles them in its own way.
"""
