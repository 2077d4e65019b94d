"""A small key broker (KBS 0.4.0) for development, demo and tests."""
