"""The gallery of a bucket's jobs: its server."""
