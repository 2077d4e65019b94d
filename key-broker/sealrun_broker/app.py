"""The HTTP face of the broker: routes, cookies, bounds on bodies, errors as JSON (kbs-protocol)."""

import asyncio
import email.utils
import http
import time
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sealrun_broker import bounds
from sealrun_broker.administration import Administration
from sealrun_broker.errors import Refusal
from sealrun_broker.metrics import CONTENT_TYPE, Metrics
from sealrun_broker.service import Caller, Service
from sealrun_broker.sessions import Session

BASE_PATH: Final = "/kbs/v0"
COOKIE: Final = "kbs-session-id"


class _Routes:
    """One method per route."""

    def __init__(
        self, service: Service, administration: Administration, metrics: Metrics, seconds: int
    ) -> None:
        self._service = service
        self._administration = administration
        self._metrics = metrics
        self._session_seconds = seconds

    async def auth(self, request: Request) -> Response:
        session = self._service.auth(_caller(request), await _body(request))
        answer = {"nonce": session.nonce, "extra-params": ""}
        return self._with_cookie(_json(200, answer), session)

    async def attest(self, request: Request) -> Response:
        session = self._service.attest(_caller(request), await _body(request))
        return self._with_cookie(_json(200, {"token": session.token}), session)

    async def get(self, request: Request) -> Response:
        jwe = self._service.resource(_caller(request), request.path_params["path"])
        return Response(jwe, media_type="application/json")

    async def put(self, request: Request) -> Response:
        content = await _body(request, bounds.RESOURCE_BYTES)
        self._administration.put(_caller(request), request.path_params["path"], content)
        return Response()

    async def delete(self, request: Request) -> Response:
        self._administration.delete(_caller(request), request.path_params["path"])
        return Response()

    async def set_references(self, request: Request) -> Response:
        self._administration.set_references(_caller(request), await _body(request))
        return Response()

    async def reference(self, request: Request) -> Response:
        value = self._administration.reference(_caller(request), request.path_params["name"])
        return Response(value, media_type="application/json")

    async def set_policy(self, request: Request) -> Response:
        self._administration.set_policy(_caller(request), await _body(request))
        return Response()

    async def metrics(self, _request: Request) -> Response:
        text = self._metrics.text(self._service.sessions())
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    def _with_cookie(self, response: Response, session: Session) -> Response:
        # As Trustee sets it: no Path, no attributes but the end of its time.
        expires = email.utils.formatdate(time.time() + self._session_seconds, usegmt=True)
        response.headers["Set-Cookie"] = f"{COOKIE}={session.id}; Expires={expires}"
        return response


def new_app(
    service: Service,
    administration: Administration,
    metrics: Metrics,
    *,
    session_seconds: int,
    stock_statuses: bool,
) -> Starlette:
    """The ASGI application. stock_statuses: 401 for all refusals but paths, as Trustee has it."""
    routes = _Routes(service, administration, metrics, session_seconds)
    resource = f"{BASE_PATH}/resource/{{path:path}}"
    references = f"{BASE_PATH}/reference-value"
    return Starlette(
        routes=[
            Route(f"{BASE_PATH}/auth", routes.auth, methods=["POST"]),
            Route(f"{BASE_PATH}/attest", routes.attest, methods=["POST"]),
            Route(resource, routes.get, methods=["GET"]),
            Route(resource, routes.put, methods=["POST"]),
            Route(resource, routes.delete, methods=["DELETE"]),
            Route(references, routes.set_references, methods=["POST"]),
            Route(f"{references}/{{name}}", routes.reference, methods=["GET"]),
            Route(f"{BASE_PATH}/resource-policy", routes.set_policy, methods=["POST"]),
            Route("/healthz", _healthy, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
        ],
        exception_handlers={
            Refusal: _refused_as_stock if stock_statuses else _refused,
            HTTPException: _no_such_route,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )


async def _healthy(_request: Request) -> Response:
    return Response()


async def _body(request: Request, limit: int = bounds.BODY_BYTES) -> bytes:
    """The whole body, within bounds of size and time. Raises Refusal."""
    parts = bytearray()
    try:
        async with asyncio.timeout(bounds.BODY_SECONDS):
            async for part in request.stream():
                parts += part
                if len(parts) > limit:
                    raise Refusal(413, "PayloadTooLarge", f"the body is longer than {limit} bytes")
    except TimeoutError as error:
        raise Refusal(408, "PayloadTimeout", "the body did not arrive in time") from error
    return bytes(parts)


def _caller(request: Request) -> Caller:
    return Caller(
        peer=request.client.host if request.client else "",
        session=request.cookies.get(COOKIE, ""),
        authorization=request.headers.get("authorization", ""),
    )


def _json(status: int, body: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _json(error.status, error.body())


async def _refused_as_stock(_request: Request, error: Exception) -> Response:
    """Trustee's statuses (kbs-protocol, 4)."""
    assert isinstance(error, Refusal)
    return _json(404 if error.name == "InvalidRequestPath" else 401, error.body())


async def _no_such_route(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    name = "PluginNotFound" if error.status_code == http.HTTPStatus.NOT_FOUND else "InvalidRequest"
    return _json(error.status_code, Refusal(error.status_code, name, str(error.detail)).body())


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=408)  # nobody receives it


async def _failed(_request: Request, _error: Exception) -> Response:
    """What nobody expected: the traceback is for the operator, not for the client."""
    return _json(500, Refusal(500, "InternalError", "the broker failed; see its log").body())
