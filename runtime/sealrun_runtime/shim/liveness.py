"""Whether the guest is still there.

A VM that hangs, its VMM stopped or its kernel in a loop, keeps its process and its connection. So it is
asked at intervals, and one that says nothing for long enough is ended.
"""

import asyncio
import time
from typing import Final, NoReturn

from sealrun_protocol.messages import Ping

from sealrun_runtime.shim.agent import Agent
from sealrun_runtime.shim.errors import VmmFailed

ROUNDS: Final = 6  # the time that an answer may take is waited for in so many parts

_REMEDY: Final = "where the host is overloaded, raise vm.silence_timeout in sealrun.toml"


async def watch(agent: Agent, seconds: float) -> NoReturn:
    """Ask the guest again and again; raise VmmFailed when it has not answered for `seconds`, or
    whatever ends the sandbox.

    The time is counted in parts, each of which leaves the loop a chance to hear an answer: where
    this process was stopped together with the VM (a frozen cgroup), the clock has gone on, and the
    guest is not to blame."""
    part = seconds / ROUNDS
    while True:
        await asyncio.sleep(part)
        asking = asyncio.ensure_future(agent.request(_ping, None))
        try:
            for _ in range(ROUNDS):
                if (await asyncio.wait((asking,), timeout=part))[0]:
                    break
            else:
                raise VmmFailed(
                    f"the VM hangs: it did not answer for {seconds:g} s", remedy=_REMEDY
                )
        finally:
            asking.cancel()
        asking.result()


def _ping(number: int) -> Ping:
    return Ping(id=number, time_ns=time.time_ns())
