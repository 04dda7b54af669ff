"""Training: SHARDS become WEIGHTS become NUMBERS. Runs without ray and img2dataset installed."""
