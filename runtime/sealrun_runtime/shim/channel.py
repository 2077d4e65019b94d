"""The shim's end of the channel: a ZeroMQ ROUTER on `channel.sock`, to which the VMM connects.

The socket listens before the VM runs and before ZeroMQ is even imported (life.py), so that the VMM
finds it at once and the import happens while the guest boots. `Channel` then takes it over.

ZeroMQ's descriptor is watched in the event loop, which is lighter than zmq.asyncio. It only tells of
changes: whatever is there must be taken, or be looked for again, before the loop waits.

The peer is a guest that may have gone bad. Memory is bounded in both directions: by the size and
number of messages that libzmq holds, by credit (streams.py), and by `_BACKLOG` for answers that a
guest asks for and does not take. A peer that breaks ZMTP is cut off by libzmq and so ends its sandbox.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq
from sealrun_protocol import limits, messages
from sealrun_protocol.messages import AGENT_IDENTITY, GuestMessage, HostMessage, ProtocolViolation

# The largest message of a guest is a StreamData.
GUEST_MESSAGE_BYTES: Final = limits.STREAM_CHUNK_BYTES + 4 * limits.KIB
_RECEIVE_QUEUE: Final = 64  # messages that libzmq holds: 4.25 MiB at the worst
_SEND_QUEUE: Final = 64
_BACKLOG: Final = 4 * limits.STREAMS  # messages that wait for room in libzmq's queue
_ROUND: Final = 32  # messages taken before other descriptors get their turn
_MONITOR: Final = "inproc://monitor"


class Channel:
    """Messages to and from the agent, in order. Event loop only.

    on_message gets each message; a ProtocolViolation that it raises ends the channel.
    on_broken is called at most once, with a reason: the guest broke the protocol.
    on_lost is called when the peer's connection is gone, which is also how a VM's end shows.
    """

    def __init__(
        self,
        name: str,
        listener: int,
        on_message: Callable[[GuestMessage], None],
        on_broken: Callable[[ProtocolViolation], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Takes `listener` over, which listens on the unix socket `name`."""
        self._on_message, self._on_broken, self._on_lost = on_message, on_broken, on_lost
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._drained: list[Callable[[], None]] = []
        self._scheduled = False
        self._open = True
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.USE_FD, listener),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.HANDSHAKE_IVL, 0),  # the VM boots between connection and greeting
            (zmq.MAXMSGSIZE, GUEST_MESSAGE_BYTES),
            (zmq.RCVHWM, _RECEIVE_QUEUE),
            (zmq.SNDHWM, _SEND_QUEUE),
            (zmq.LINGER, 0),
        ):
            self._socket.setsockopt(option, value)
        self._socket.monitor(_MONITOR, zmq.EVENT_DISCONNECTED)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.connect(_MONITOR)
        self._socket.bind(f"ipc://{name}")
        self._loop.add_reader(self._socket.fileno(), self._serve)
        self._loop.add_reader(self._monitor.fileno(), self._disconnected)
        # A descriptor of ZeroMQ's tells of nothing until one has looked in vain.
        self._disconnected()
        self._schedule()

    @property
    def congested(self) -> bool:
        """Whether bulk senders should wait (`when_drained`) because the guest takes too little."""
        return bool(self._waiting)

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call `call` once when the channel is no longer congested."""
        self._drained.append(call)

    def send(self, message: HostMessage) -> None:
        """Send, or queue where the guest takes too little at the moment."""
        if not self._open:
            return
        self._waiting.append(messages.encode(message))
        self._flush()
        if len(self._waiting) > _BACKLOG:
            self._break(ProtocolViolation("the guest asks and does not take the answers"))
        self._schedule()  # sending may have swallowed the sign that something arrived

    def close(self) -> None:
        """Drop what is queued and end. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._waiting.clear()
        self._drained.clear()
        for one in (self._socket, self._monitor):
            self._loop.remove_reader(one.fileno())
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._context.term()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_serve)

    def _scheduled_serve(self) -> None:
        self._scheduled = False
        self._serve()

    def _serve(self) -> None:
        """Take what there is, a round at most, and send what waits."""
        for _ in range(_ROUND):
            if not self._open:
                return
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            self._receive(frames)
        if self._open:
            self._flush()
            if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                self._schedule()

    def _receive(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 2 or frames[0] != AGENT_IDENTITY:
                raise ProtocolViolation("a message that is not one frame of the agent's")
            self._on_message(messages.decode_from_guest(frames[1]))
        except ProtocolViolation as error:
            self._break(error)

    def _flush(self) -> None:
        try:
            while self._waiting:
                parts = (AGENT_IDENTITY, self._waiting[0])
                self._socket.send_multipart(parts, zmq.DONTWAIT)
                self._waiting.popleft()
        except zmq.Again:
            return
        except zmq.ZMQError:  # no route: the peer is gone, which `_disconnected` reports
            self._waiting.clear()
        calls, self._drained = self._drained, []
        for call in calls:
            call()

    def _break(self, error: ProtocolViolation) -> None:
        if self._open:
            self.close()
            self._on_broken(error)

    def _disconnected(self) -> None:
        try:
            while self._open:
                self._monitor.recv_multipart(zmq.DONTWAIT)
                self._on_lost()
        except zmq.Again:
            return
