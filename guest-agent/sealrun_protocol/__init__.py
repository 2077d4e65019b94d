"""What host and guest say to each other: types, limits, no I/O."""
