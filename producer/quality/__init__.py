"""``filterfarm quality``: measures of a job's tiles."""
