"""Tweaks: changes to the towers before they are wrapped for data parallelism."""
