"""PID 1 of the micro-VM and the trusted computing base."""
