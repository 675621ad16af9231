"""What producer and workers agree on: jobs, keys, settings, storage, queue and ledger. Imports no torch."""
