"""Get, check, decode and load images: from a folder on disk to batches of a data loader."""
