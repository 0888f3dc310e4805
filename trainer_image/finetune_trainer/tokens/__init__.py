"""From rows to token ids, labels and batches: the same tokens in preflight, train, evaluate and serve.

Knows the tokenizer and its chat template, and no weights; only `batching` imports torch itself.
"""
