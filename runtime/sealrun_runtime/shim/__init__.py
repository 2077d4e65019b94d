"""The resident process of one sandbox."""
