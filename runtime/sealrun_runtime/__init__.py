"""Host side of sealrun: what Podman, CRI-O and containerd call."""
