"""Predictions for a user's own images: on the command line, in Python, on a local web page."""
