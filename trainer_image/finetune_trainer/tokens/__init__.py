# SPDX-License-Identifier: Apache-2.0
"""Encodes rows as token ids, labels and batches: the same tokens in preflight, train, evaluate and serve.

The package uses the tokenizer and its chat template, but no weights; only `batching` imports torch itself.
"""
