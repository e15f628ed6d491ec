"""Text into token shards: tokenizers, datasets, the byte oracle and batches."""
