"""Convolutions on CPUs in compiled code of our own, where that is faster than torch's; GPUs have their libraries."""
