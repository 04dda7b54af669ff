"""Views: one augmented rendering of a sample each."""
