"""Tunnels: how a worker thread gets a TCP connection that the host opens on its behalf, or what the
host's cache has of an image.

The worker gets one end of a socket pair and uses it as it would use a TCP socket; the loop moves
the bytes between the other end and the channel. The host sees what it carries unless the worker
puts TLS on it, which it does for whatever matters.
"""

import queue
import socket
from collections.abc import Callable
from typing import NamedTuple

from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.dial import Dial
from sealrun_agent.errors import DialFailed
from sealrun_agent.loop import Loop
from sealrun_agent.streams import Post, Streams

_Ask = Callable[[int], messages.GuestMessage]
"""The question for a stream."""


class _Waiting(NamedTuple):
    """A worker that asked for a tunnel, until the host answers."""

    owner: str
    answer: "queue.SimpleQueue[socket.socket | DialFailed]"


class Tunnels:
    """All tunnels of the sandbox. `dialler` for any thread, everything else for the loop's."""

    def __init__(self, events: Loop, streams: Streams, post: Post) -> None:
        self._loop, self._streams, self._post = events, streams, post
        self._next = 1  # odd: the guest's
        self._waiting: dict[int, _Waiting] = {}
        self._owned: dict[str, set[int]] = {}

    def dialler(self, owner: str) -> Dial:
        """A Dial for worker threads, whose tunnels end when `owner` is abandoned."""

        def dial(host: str, port: int) -> socket.socket:
            return self._opened(
                owner,
                lambda stream: messages.OpenTunnel(stream=stream, host=host, port=port),
                f"{host}:{port}",
            )

        return dial

    def fetcher(self, owner: str, image: str) -> Callable[[str], socket.socket]:
        """For worker threads: what the host has of `image` with a digest, as a stream that ends with it.
        Raises DialFailed."""

        def fetch(digest: str) -> socket.socket:
            return self._opened(
                owner,
                lambda stream: messages.OpenContent(stream=stream, image=image, digest=digest),
                digest,
            )

        return fetch

    def _opened(self, owner: str, ask: _Ask, what: str) -> socket.socket:
        """Raises DialFailed."""
        answer: queue.SimpleQueue[socket.socket | DialFailed] = queue.SimpleQueue()
        self._loop.post(lambda: self._ask(_Waiting(owner, answer), ask, what))
        result = answer.get()  # bounded by the timer of _ask
        if isinstance(result, DialFailed):
            raise result
        return result

    def opened(self, stream: int) -> None:
        """The host says that the connection stands."""
        waiting = self._waiting.pop(stream, None)
        if waiting is None:
            return  # given up meanwhile
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(limits.HTTP_SECONDS)
        self._streams.open_socket(stream, ours)
        waiting.answer.put(theirs)

    def refused(self, message: messages.StreamReset) -> bool:
        """Whether the message was the host's answer to somebody who waits for a tunnel."""
        waiting = self._waiting.pop(message.stream, None)
        if waiting is None:
            return False
        refused = message.code is ErrorCode.ENDPOINT_REFUSED
        text = message.text or "the host did not connect"
        waiting.answer.put(DialFailed(text, refused=refused))
        return True

    def abandon(self, owner: str) -> None:
        """End what `owner` opened or waits for."""
        for stream in self._owned.pop(owner, set()):
            self._give_up(stream, "the container was deleted")
            self._streams.reset(stream)

    def _ask(self, waiting: _Waiting, ask: _Ask, what: str) -> None:
        if len(self._streams) + len(self._waiting) >= limits.STREAMS:
            waiting.answer.put(DialFailed(f"{what}: too many open streams", refused=False))
            return
        stream, self._next = self._next, self._next + 2
        self._waiting[stream] = waiting
        mine = self._owned.setdefault(waiting.owner, set())
        mine -= {old for old in mine if old not in self._streams and old not in self._waiting}
        mine.add(stream)
        self._post(ask(stream))
        silence = f"{what}: the host did not answer in {limits.HTTP_SECONDS} s"
        self._loop.later(limits.HTTP_SECONDS, lambda: self._give_up(stream, silence))

    def _give_up(self, stream: int, text: str) -> None:
        waiting = self._waiting.pop(stream, None)
        if waiting is not None:
            self._post(messages.StreamReset(stream=stream))
            waiting.answer.put(DialFailed(text, refused=False))
