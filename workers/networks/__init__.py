"""Torch models: built, loaded, traced, cut and fused."""
