"""One file a risk: what its adversary is handed, and how the outcome is judged."""
