"""The gallery: thumbnails, atlases, descriptors, JSON documents, the static pages that show them, and their server."""
