"""The demo world: rendered scenes with known labels and planted faults, served on loopback."""
