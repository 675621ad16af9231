"""The ``filterfarm`` command: the only package that knows click, and the only one that prints."""
