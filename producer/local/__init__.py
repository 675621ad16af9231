"""``filterfarm run``: a whole farm on this machine."""
