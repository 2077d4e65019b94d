"""The host's cache of what guests pull: blobs and manifests by digest, shared by all sandboxes."""
