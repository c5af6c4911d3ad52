"""The embedded sample: drawn portraits and simulated face swaps."""
