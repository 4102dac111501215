"""Records from files, and from records to packed batches."""
