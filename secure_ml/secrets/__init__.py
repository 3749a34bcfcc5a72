"""What a reconstruction is after: each file says what its adversary is handed and how the outcome is judged."""
