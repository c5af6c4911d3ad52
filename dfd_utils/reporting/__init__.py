"""Figures, tables and sentences for the notebooks, and the report that is made of them."""
