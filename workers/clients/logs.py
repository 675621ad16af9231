"""The logging set-up of worker, collector and supervisor."""

import logging
import sys


def log_to_stderr() -> None:
    """Send records of level INFO and above to stderr, one line each: time, level, module, message."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
