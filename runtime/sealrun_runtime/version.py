"""What this release is called. `pyproject.toml` says the same; a test holds them together."""

VERSION = "0.1.0"
OCI_VERSION_MIN = "1.0.0"
OCI_VERSION_MAX = "1.3.0"
