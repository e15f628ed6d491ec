"""Train, pack, judge and record small language models under hard limits."""

__version__ = "0.1.0"
