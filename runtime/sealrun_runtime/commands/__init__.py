"""One thin module per OCI verb."""
