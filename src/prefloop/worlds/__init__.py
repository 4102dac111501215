"""Embedded worlds: small, offline, fully graded places in which the whole loop can be lived through."""
