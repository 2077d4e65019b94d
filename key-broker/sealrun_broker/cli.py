"""The command line: init, serve, add-resource, admin-token, log. Errors are one line, status 1."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Final

from sealrun_protocol.resource_uri import ResourceNameInvalid, parse_name

from sealrun_broker import bounds, directory
from sealrun_broker.errors import BrokerError

_LISTEN: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+)):([0-9]{1,5})")


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except BrokerError as error:
        print(f"sealrun-broker: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `log | head`
        sys.stderr.close()
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sealrun-broker",
        description="A small key broker (KBS 0.4.0) for development, demonstration and tests.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="make a broker's directory: keys, CA, empty store")
    init.add_argument("directory", metavar="DIR")
    init.add_argument(
        "--name", action="append", default=[], help="another name or address of the server"
    )
    init.set_defaults(run=_init)

    serve = commands.add_parser("serve", help="serve a directory until SIGTERM")
    serve.add_argument("directory", metavar="DIR")
    serve.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    serve.add_argument("--port-file", metavar="FILE", help="write the port there (PORT may be 0)")
    serve.add_argument("--insecure-http", action="store_true", help="no TLS")
    serve.add_argument("--session-seconds", type=int, default=bounds.SESSION_SECONDS, metavar="N")
    serve.set_defaults(run=_serve)

    add = commands.add_parser("add-resource", help="store a file's content as a resource")
    add.add_argument("directory", metavar="DIR")
    add.add_argument("name", metavar="REPOSITORY/TYPE/TAG")
    add.add_argument("file", metavar="FILE", help="- for the standard input")
    add.set_defaults(run=_add_resource)

    token = commands.add_parser("admin-token", help="print a bearer token of an administrator")
    token.add_argument("directory", metavar="DIR")
    token.add_argument("--seconds", type=int, default=300, metavar="N", help="its life")
    token.set_defaults(run=_admin_token)

    log = commands.add_parser("log", help="print what was asked and decided")
    log.add_argument("directory", metavar="DIR")
    log.set_defaults(run=_log)
    return parser


def _init(options: argparse.Namespace) -> None:
    from sealrun_broker.setup import initialise

    home = initialise(options.directory, options.name)
    print(f"made {home.path}; give {home.ca} to the tenants, and edit {home.policy}")


def _serve(options: argparse.Namespace) -> None:
    from sealrun_broker.server import Options, serve

    found = _LISTEN.fullmatch(options.listen)
    if found is None or int(found[3]) > 65535:
        raise BrokerError(f"cannot listen on {options.listen!a}: it is not HOST:PORT")
    if options.session_seconds < 1:
        raise BrokerError("cannot serve: --session-seconds must be at least 1")
    serve(
        directory.existing(options.directory),
        Options(
            host=found[1] or found[2],
            port=int(found[3]),
            port_file=options.port_file,
            insecure_http=options.insecure_http,
            session_seconds=options.session_seconds,
        ),
    )


def _add_resource(options: argparse.Namespace) -> None:
    from sealrun_broker.store import Store

    home = directory.existing(options.directory)
    try:
        name = parse_name(options.name)
    except ResourceNameInvalid as error:
        raise BrokerError(f"cannot store the resource: {error}") from error
    if options.file == "-":
        content = sys.stdin.buffer.read(bounds.RESOURCE_BYTES + 1)
    else:
        content = directory.read(options.file)
    Store(home.resources).put(name, content)
    print(f"stored kbs:///{name}, {len(content)} bytes")


def _admin_token(options: argparse.Namespace) -> None:
    from sealrun_broker import admin

    if not 0 < options.seconds <= bounds.ADMIN_TOKEN_SECONDS:
        raise BrokerError(
            f"cannot sign a token: --seconds must be 1 to {bounds.ADMIN_TOKEN_SECONDS}"
        )
    home = directory.existing(options.directory)
    print(admin.new_token(directory.read(home.admin_key), options.seconds))


def _log(options: argparse.Namespace) -> None:
    from sealrun_broker.audit import entries

    for entry in entries(directory.existing(options.directory).audit):
        words = [entry.time, entry.peer, entry.event, entry.resource, entry.outcome]
        words += [f"{name}={value}" for name, value in (("tee", entry.tee),) if value]
        words += [f"session={entry.session}"] if entry.session else []
        words += [f"({entry.detail})"] if entry.detail else []
        print(_visible(" ".join(word for word in words if word)))


def _visible(text: str) -> str:
    """Without what would be a line of its own, or what a terminal would obey: clients wrote some."""
    return "".join(character if character.isprintable() else "?" for character in text)
