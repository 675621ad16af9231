"""What a GPU machine runs, and what both sides agree on."""
