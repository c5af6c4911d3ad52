"""Results of trained models as data and tables: metrics, robustness, comparisons. Draws nothing."""
