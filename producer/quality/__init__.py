"""``filterfarm quality``: how good a job's pictures are."""
