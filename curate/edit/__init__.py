"""Edits: a changed picture under a new fingerprint; the one a row came with is kept."""
