"""Pure functions on tensors and arrays: one value per token, pair or text comes back, and the caller averages.

Import the module that is meant (`prefloop.formulas.divergences`), never this package: `intervals` needs no torch.

Responses of different lengths stand end to end in one axis, `token`, without padding. A companion `segment` says which
response each token belongs to: non-decreasing integers from 0 to num_responses - 1. Log-probabilities are in nats.
"""
