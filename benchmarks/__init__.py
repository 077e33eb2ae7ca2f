"""Measurements beside peers, each printed as a ratio within one run."""
