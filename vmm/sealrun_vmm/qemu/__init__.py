"""QEMU as the VMM."""
