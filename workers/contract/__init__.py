"""What producer and workers agree on, as pure data: no Redis, no S3, no torch, no sockets."""
