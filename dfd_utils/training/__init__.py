"""Train a model: `fit` with exact resume, and how long that takes."""
