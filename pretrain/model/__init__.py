"""The two towers, and what changes them."""
