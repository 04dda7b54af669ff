"""Measures: new columns about words and pictures. Nothing is dropped here."""
