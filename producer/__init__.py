"""The control plane: what a person runs. It needs no GPU."""
