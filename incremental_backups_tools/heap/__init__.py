"""Whole files by their content: each kept once, however many trees hold it."""
