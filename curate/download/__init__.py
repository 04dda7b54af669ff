"""Pictures come in, and what may not come in is refused with a reason."""
