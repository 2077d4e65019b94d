"""Runs the broker: reads its directory, listens, serves until SIGTERM or SIGINT."""

import asyncio
import os
import signal
import socket
import ssl
from typing import NamedTuple

import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from starlette.applications import Starlette

from sealrun_broker import admin, bounds, directory
from sealrun_broker.administration import Administration
from sealrun_broker.app import new_app
from sealrun_broker.audit import Audit
from sealrun_broker.collateral import Collateral
from sealrun_broker.directory import Directory
from sealrun_broker.ear import Tokens
from sealrun_broker.errors import BrokerError
from sealrun_broker.journal import Journal
from sealrun_broker.metrics import Metrics
from sealrun_broker.policy import PolicyFile
from sealrun_broker.reference_values import ReferenceValues
from sealrun_broker.service import Service
from sealrun_broker.sessions import Sessions
from sealrun_broker.store import Store, read_key


class Options(NamedTuple):
    """port 0: any free one. port_file: where to write the port, once it is listened on. store_key:
    where the key of the resources is, if not in the directory. stock_statuses: see app.new_app."""

    host: str
    port: int
    port_file: str | None = None
    insecure_http: bool = False
    session_seconds: int = bounds.SESSION_SECONDS
    store_key: str | None = None
    stock_statuses: bool = False


def serve(home: Directory, options: Options) -> None:
    """Returns when it was told to stop, the requests at hand answered. Raises BrokerError."""
    app = _app(home, options)
    tls = None if options.insecure_http else _tls(home)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=bounds.CONNECTIONS,
        timeout_graceful_shutdown=2,  # a client that keeps its connection does not hold the end up
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    server = uvicorn.Server(config)
    # uvicorn handles both only while it serves, and at its end raises them again for whoever came
    # before it: so that none is lost, and none kills, that is itself.
    signal.signal(signal.SIGTERM, server.handle_exit)
    signal.signal(signal.SIGINT, server.handle_exit)
    with _listen(options.host, options.port) as listener:
        port = listener.getsockname()[1]
        if options.port_file is not None:
            _write_port(options.port_file, port)
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"listening on {'http' if tls is None else 'https'}://{host}:{port}", flush=True)
        asyncio.run(server.serve(sockets=[listener]))


def _app(home: Directory, options: Options) -> Starlette:
    policy, references = PolicyFile(home.policy), ReferenceValues(home.references)
    policy.current()  # an error in them is told at the start
    references.current()
    store = Store(home.resources, read_key(options.store_key or home.store_key))
    metrics = Metrics()
    journal = Journal(Audit(home.audit), metrics)
    seconds = options.session_seconds
    service = Service(
        store=store,
        policy=policy,
        references=references,
        collateral=Collateral(home.collateral),
        sessions=Sessions(seconds),
        tokens=Tokens(_token_key(home), seconds),
        journal=journal,
    )
    administration = Administration(
        key=admin.public_key(directory.read(home.admin)),
        store=store,
        policy=policy,
        references=references,
        journal=journal,
    )
    return new_app(
        service,
        administration,
        metrics,
        session_seconds=seconds,
        stock_statuses=options.stock_statuses,
    )


def _token_key(home: Directory) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(directory.read(home.token_key), None)
    except (ValueError, TypeError) as error:
        raise BrokerError(f"cannot read {home.token_key}: it is not a PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BrokerError(f"cannot use {home.token_key}: it is not a P-256 key")
    return key


def _tls(home: Directory) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(home.server, home.server_key)
    except OSError as error:  # ssl.SSLError is one
        raise BrokerError(f"cannot use {home.server} with its key: {error}") from error
    return context


def _listen(host: str, port: int) -> socket.socket:
    # asyncio switches Nagle's algorithm off, 40 ms an answer, only where the protocol is named.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(bounds.CONNECTIONS)
    except OSError as error:
        listener.close()
        raise BrokerError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _write_port(path: str, port: int) -> None:
    try:
        directory.write(os.path.abspath(path), f"{port}\n".encode(), 0o644)
    except OSError as error:
        raise BrokerError(f"cannot write {path}: {error.strerror}") from error
