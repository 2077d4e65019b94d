"""A container's seat in a sandbox: the container, and the socket at which it is asked about."""

import asyncio
import socket
from typing import Final

from sealrun_runtime.shim.member import Member
from sealrun_runtime.shim.server import Requests, Server

ASKED_SECONDS: Final = 30.0  # for `create` to ask, which it does at once unless it was killed


class Seat:
    """Event loop only."""

    def __init__(self, member: Member, listener: socket.socket, requests: Requests) -> None:
        """Takes the listener over."""
        self.member = member
        self._server = Server(listener, requests)
        self._asked = asyncio.ensure_future(self._expect_create())

    async def close(self) -> None:
        """The container is gone: answer who has asked, and nobody any more. A `create` that is still
        to come is waited for where the container was lost before."""
        if self.member.lost is not None and not self.member.asked:
            await self._asked
        self._asked.cancel()
        await self._server.close()

    async def _expect_create(self) -> None:
        try:
            async with asyncio.timeout(ASKED_SECONDS):
                await self._server.create_asked.wait()
        except TimeoutError:
            self.member.call_off("nobody asked for the container")
