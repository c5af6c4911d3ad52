"""Metrics, their intervals and paired tests, on arrays of labels and scores. Knows no torch."""
