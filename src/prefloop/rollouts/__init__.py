"""Completions with log-probabilities, and their scores."""
