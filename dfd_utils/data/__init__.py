"""Download, audit, decode and load images: from a folder on disk to batches."""
