"""Evidence, the key broker client, and keys."""
