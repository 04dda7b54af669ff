"""What was learned: figures from an encoder and a set."""
