"""Kept rows become shuffled webdataset tars."""
