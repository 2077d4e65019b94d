"""The container in the guest: accepted spec, crun, processes."""
