"""What travels, and what its client shows, against a key that never does."""
