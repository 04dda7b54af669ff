"""Decisions: which rows stay, and the reason of each that does not."""
