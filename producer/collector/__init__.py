"""The collector: re-enqueues lost tiles, assembles sheets, records and gallery, finishes jobs."""
