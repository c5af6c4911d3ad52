"""Build, store, load, score and explain one model."""
