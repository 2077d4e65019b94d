"""Builds the guest image (kernel, initrd, manifest) from Debian packages, wheels and our sources."""
