"""The image service in the guest: pull, verify, decrypt, unpack."""
