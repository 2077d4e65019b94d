"""The host half of each TEE: what this machine offers, and what a VmSpec needs to use it."""
