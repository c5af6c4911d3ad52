"""A user's own images in, answers out: on the command line, in Python, on a local page."""
