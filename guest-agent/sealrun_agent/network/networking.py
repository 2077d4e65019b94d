"""The description of the moment, and the wait for devices that the VMM is still plugging in."""

import time
from collections.abc import Callable
from typing import Final

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.network import Network

from sealrun_agent.errors import AgentError, StartError
from sealrun_agent.loop import Loop, Timer
from sealrun_agent.network.setup import Setup

DEVICE_SECONDS: Final = 20.0  # from the description to its devices, under emulation
_LOOK_SECONDS: Final = 0.02

Done = Callable[[AgentError | None], None]
"""Called once, with what went wrong."""
Attempt = Callable[[Callable[[], None]], AgentError | None]
"""Turns whatever a call raises into an error that can be told."""


class Networking:
    """Loop thread only."""

    def __init__(self, events: Loop, load_drivers: Callable[[], None], attempt: Attempt) -> None:
        """load_drivers: for devices that came after the boot; cheap where there are none."""
        self._events, self._load_drivers, self._attempt = events, load_drivers, attempt
        self._setup = Setup()
        self._timer: Timer | None = None
        self._done: Done = lambda _error: None

    def configure(self, network: Network, done: Done) -> None:
        """Make it so, as soon as all devices are there. A description that still waits is given up."""
        if self._timer is not None:
            self._timer.cancel()
            self._finish(StartError(ErrorCode.NETWORK_FAILED, "a newer description came"))
        self._done = done
        self._try(network, time.monotonic() + DEVICE_SECONDS)

    def _try(self, network: Network, deadline: float) -> None:
        self._timer = None
        error = self._attempt(lambda: self._make(network, deadline))
        if error is not None or self._timer is None:
            self._finish(error)

    def _make(self, network: Network, deadline: float) -> None:
        """Apply it, or look again later. Raises AgentError."""
        missing = self._setup.missing(network)
        if not missing:
            self._setup.apply(network)
        elif time.monotonic() > deadline:
            names = [one.name for one in network.interfaces if one.device in missing]
            raise StartError(
                ErrorCode.NETWORK_FAILED, f"the VM has no device for interface {', '.join(names)}"
            )
        else:
            self._load_drivers()
            self._timer = self._events.later(_LOOK_SECONDS, lambda: self._try(network, deadline))

    def _finish(self, error: AgentError | None) -> None:
        self._timer = None
        self._done(error)
