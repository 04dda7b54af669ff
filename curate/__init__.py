"""Curation: a POOL of (image URL, alt-text) rows becomes SHARDS, and every row keeps its reason."""
