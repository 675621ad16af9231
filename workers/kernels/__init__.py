"""Optional compiled convolutions for CPUs. Without them everything works, on torch's own."""
