"""Feature visualisation: network, layer, filters and recipe in, tiles out. No I/O."""
