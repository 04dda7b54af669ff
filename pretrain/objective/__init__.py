"""Terms of the loss, one file each. Distribution lives in `base.py`, never in a term."""
