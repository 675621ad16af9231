"""The data plane: what a GPU machine runs."""
