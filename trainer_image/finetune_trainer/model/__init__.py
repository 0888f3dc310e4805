"""Tokenizer, chat template, tokens of rows, and weights: what preflight, train, evaluate and serve share."""
