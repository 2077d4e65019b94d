"""What a TEE will say of a VM, computed from the same VmSpec that a driver boots, without booting it."""
