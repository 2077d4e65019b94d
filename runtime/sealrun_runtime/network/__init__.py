"""The engine's network namespace: what is in it, and the way of its packets into a VM and back."""
