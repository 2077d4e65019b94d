"""Requests and answers: matched by id, bounded in time."""

import asyncio

import pytest
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.messages import (
    Done,
    Failed,
    HostMessage,
    ProtocolViolation,
    ShutdownSandbox,
)
from sealrun_runtime.shim.agent import Agent, Silence
from sealrun_runtime.shim.errors import GuestFailed, VmmFailed


def shutdown(number: int) -> HostMessage:
    return ShutdownSandbox(id=number)


def test_answers_find_their_requests_in_any_order() -> None:
    async def scenario() -> None:
        sent: list[HostMessage] = []
        agent = Agent(sent.append)
        first = asyncio.ensure_future(agent.request(shutdown, 5))
        second = asyncio.ensure_future(agent.request(shutdown, 5))
        await asyncio.sleep(0)
        assert sent == [ShutdownSandbox(id=1), ShutdownSandbox(id=2)]
        agent.answered(Done(id=2, image_digest="b"))
        agent.answered(Done(id=1, image_digest="a"))
        assert ((await first).image_digest, (await second).image_digest) == ("a", "b")

    asyncio.run(scenario())


def test_failed_is_an_error() -> None:
    async def scenario() -> None:
        agent = Agent(lambda _: None)
        request = asyncio.ensure_future(agent.request(shutdown, 5))
        await asyncio.sleep(0)
        agent.answered(Failed(id=1, phase=Phase.RUN, code=ErrorCode.INTERNAL, text="x"))
        with pytest.raises(GuestFailed, match=r"run: .*: x"):
            await request

    asyncio.run(scenario())


def test_silence_and_a_late_answer() -> None:
    async def scenario() -> None:
        agent = Agent(lambda _: None)
        with pytest.raises(Silence, match=r"did not answer ShutdownSandbox within 0\.01 s"):
            await agent.request(shutdown, 0.01)
        agent.answered(Done(id=1))  # late, and nobody minds
        with pytest.raises(ProtocolViolation):
            agent.answered(Done(id=1))

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [0, 1, -1, 2**63 - 1])
def test_an_answer_to_nothing(number: int) -> None:
    with pytest.raises(ProtocolViolation):
        Agent(lambda _: None).answered(Done(id=number))


def test_a_failure_ends_what_waits_and_what_comes() -> None:
    async def scenario() -> None:
        agent = Agent(lambda _: None)
        request = asyncio.ensure_future(agent.request(shutdown, 5))
        await asyncio.sleep(0)
        agent.fail(VmmFailed("the VM ended"))
        for one in (request, agent.request(shutdown, 5)):
            with pytest.raises(VmmFailed):
                await one

    asyncio.run(scenario())


def test_a_cancelled_request_can_still_be_answered() -> None:
    async def scenario() -> None:
        agent = Agent(lambda _: None)
        request = asyncio.ensure_future(agent.request(shutdown, 5))
        await asyncio.sleep(0)
        request.cancel()
        agent.answered(Done(id=1))
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(scenario())
