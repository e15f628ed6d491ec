"""Weights and code into a submission: the container, its codecs, the bundle, the folder."""
