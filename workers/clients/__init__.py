"""Redis, the object store and the operating system, as both sides use them."""
