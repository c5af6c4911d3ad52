"""Metrics, intervals and paired tests on arrays of labels and scores; independent of torch."""
