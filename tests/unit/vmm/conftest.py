"""Fixtures of the tests that drive a simulated Cloud Hypervisor."""

from fixtures.simulated_hypervisor import boot, directory, spec  # noqa: F401
