"""Helpers that several rooms use, and that import none of them."""
