"""The command line: init, serve, add-resource, add-reference, policy, verify, seal, admin-token, log.

Errors are one line; the exit status is 1 then, and 1 where `verify` does not accept."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from sealrun_protocol.evidence import NONCE_BYTES, bound_to
from sealrun_protocol.resource_uri import ResourceNameInvalid, parse_name

from sealrun_broker import bounds, directory
from sealrun_broker.errors import BrokerError

if TYPE_CHECKING:
    from sealrun_broker.reference_values import References, ReferenceValues

_LISTEN: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+)):([0-9]{1,5})")
_REPORT_DATA: Final = range(32, 65)  # bytes
_TIMES: Final = range(253_402_300_800)  # seconds, to the end of the year 9999


def main(arguments: Sequence[str]) -> int:
    """Run one command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int | None = options.run(options)
    except BrokerError as error:
        print(f"sealrun-broker: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `log | head`
        sys.stderr.close()
        return 1
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sealrun-broker",
        description="A small key broker (KBS 0.4.0) for development, demonstration and tests.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, *, home: bool = True
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text)
        made.set_defaults(run=run)
        if home:
            made.add_argument("directory", metavar="DIR")
        return made

    init = command("init", _init, "make a broker's directory: keys, CA, empty store")
    init.add_argument(
        "--name", action="append", default=[], help="another name or address of the server"
    )
    _store_key(init)
    _serve_options(command("serve", _serve, "serve a directory until SIGTERM"))
    add = command("add-resource", _add_resource, "store a file's content as a resource")
    add.add_argument("name", metavar="REPOSITORY/TYPE/TAG")
    add.add_argument("file", metavar="FILE", help="- for the standard input")
    _store_key(add)
    reference = command("add-reference", _add_reference, "say what a good measurement is")
    reference.add_argument("name", metavar="NAME", nargs="?", help="as in Trustee's policies")
    reference.add_argument("value", metavar="VALUE", nargs="*", help="all good ones; none: forget")
    reference.add_argument("--file", metavar="FILE", help="a JSON object of names and values")
    policy = command("policy", _policy, "check and print the policy")
    policy.add_argument("--set", metavar="FILE", help="check that file and put it in place")
    _verify_options(command("verify", _verify, "appraise an evidence file, offline", home=False))
    signer = command("seal-key", _seal_key, "make a key that signs sealed secrets", home=False)
    signer.add_argument("prefix", metavar="PREFIX", help="of PREFIX-private.json, -public.json")
    _seal_options(command("seal", _seal, "make a sealed secret for a guest", home=False))
    token = command("admin-token", _admin_token, "print a bearer token of an administrator")
    token.add_argument("--seconds", type=int, default=300, metavar="N", help="its life")
    command("log", _log, "print what was asked and decided")
    return parser


def _store_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store-key", metavar="FILE", help="the key of the resources, if not DIR/store.key"
    )


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--port-file", metavar="FILE", help="write the port there (PORT may be 0)")
    parser.add_argument("--insecure-http", action="store_true", help="no TLS")
    parser.add_argument("--session-seconds", type=int, default=bounds.SESSION_SECONDS, metavar="N")
    parser.add_argument(
        "--stock-statuses",
        action="store_true",
        help="answer 401 where Trustee does: also for what is denied or not there",
    )
    _store_key(parser)


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="EVIDENCE", help="JSON; - for the standard input")
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--report-data", metavar="HEX", help="what it must be bound to")
    bound.add_argument("--nonce", metavar="HEX", help="or the nonce of `sealrun attest`")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--init-data", metavar="FILE", help="the init-data it must be bound to")
    given.add_argument("--no-init-data", action="store_true", help="the VM must have none")
    given.add_argument("--insecure-any-init-data", action="store_true", help="do not compare it")
    parser.add_argument(
        "--collateral", metavar="DIR", default="", help="as in a broker's directory"
    )
    parser.add_argument("--reference-values", metavar="FILE", help="a JSON object")
    parser.add_argument("--policy", metavar="FILE", help="a policy.toml, for its [evidence]")
    parser.add_argument("--time", type=int, metavar="UNIX", help="judge as of then, not now")


def _seal_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--signer", required=True, metavar="FILE", help="PREFIX-private.json")
    parser.add_argument("--kid", required=True, metavar="URI", help="of the signer's public key")
    parser.add_argument(
        "--place", metavar="NAME|PATH", help="the variable or file that it is for, and no other"
    )
    kinds = parser.add_subparsers(required=True, dest="kind", metavar="KIND")
    vault = kinds.add_parser("vault", help="a resource's name; the resource is the secret")
    vault.add_argument("uri", metavar="URI", help="kbs:///repository/type/tag")
    envelope = kinds.add_parser("envelope", help="a file, encrypted with a key that is a resource")
    envelope.add_argument("--key", required=True, metavar="FILE", help="the key, 32 bytes")
    envelope.add_argument("--key-id", required=True, metavar="URI", help="the key's resource")
    envelope.add_argument("file", metavar="FILE", help="- for the standard input")


def _init(options: argparse.Namespace) -> None:
    from sealrun_broker.setup import initialise

    home = initialise(options.directory, options.name, options.store_key)
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
            store_key=options.store_key,
            stock_statuses=options.stock_statuses,
        ),
    )


def _add_resource(options: argparse.Namespace) -> None:
    from sealrun_broker.store import Store, read_key

    home = directory.existing(options.directory)
    try:
        name = parse_name(options.name)
    except ResourceNameInvalid as error:
        raise BrokerError(f"cannot store the resource: {error}") from error
    content = _content(options.file, bounds.RESOURCE_BYTES)
    Store(home.resources, read_key(options.store_key or home.store_key)).put(name, content)
    print(f"stored kbs:///{name}, {len(content)} bytes")


def _add_reference(options: argparse.Namespace) -> None:
    from sealrun_broker.reference_values import ReferenceValues, from_words, parse

    home = directory.existing(options.directory)
    if (options.name is None) == (options.file is None):
        raise BrokerError("cannot store reference values: give NAME and VALUEs, or --file")
    if options.file is None:
        values = {options.name: from_words(options.name, options.value)}
    else:
        try:
            values = parse(_content(options.file, bounds.REFERENCE_BYTES))
        except (ValueError, RecursionError) as error:
            raise BrokerError(f"cannot read {options.file}: {error}") from error
        if not values:
            raise BrokerError(f"cannot read {options.file}: it holds no value")
    references = ReferenceValues(home.references)
    _set_references(references, values)


def _set_references(references: "ReferenceValues", values: "References") -> None:
    forgotten = sorted(name for name in values if values[name] == [])
    stored = sorted(set(values).difference(forgotten))
    for name in forgotten:
        if name not in references.current():
            raise BrokerError(f"cannot forget it: there is no reference value {name}")
    references.set(values)
    for word, names in (("stored", stored), ("forgot", forgotten)):
        if names:
            print(f"{word} {', '.join(names)}")


def _policy(options: argparse.Namespace) -> None:
    from sealrun_broker.policy import PolicyFile

    home = directory.existing(options.directory)
    policy = PolicyFile(home.policy)
    if options.set is not None:
        policy.replace(directory.read(options.set))
    policy.current()
    sys.stdout.write(directory.read(home.policy).decode())


def _verify(options: argparse.Namespace) -> int:
    import time

    import msgspec

    from sealrun_broker import offline, policy, reference_values
    from sealrun_broker.collateral import Collateral
    from sealrun_broker.verifiers.binding import Expected

    init_data = b"" if options.no_init_data else None
    if options.init_data is not None:
        init_data = _filled(options.init_data)
    references: reference_values.References = {}
    if options.reference_values is not None:
        try:
            references = reference_values.parse(directory.read(options.reference_values))
        except (ValueError, RecursionError) as error:
            raise BrokerError(f"cannot read {options.reference_values}: {error}") from error
    rules = policy.parse(b"" if options.policy is None else _filled(options.policy))
    if options.time is not None and options.time not in _TIMES:
        raise BrokerError("cannot use --time: it is not a time from 1970 to 9999")
    now = time.time() if options.time is None else options.time
    found = offline.verdict(
        offline.read(_content(options.file, bounds.BODY_BYTES)),
        Expected(_report_data(options), init_data, now),
        rules.evidence,
        Collateral(options.collateral),
        references,
    )
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    return 0 if found["accepted"] else 1


def _filled(file: str) -> bytes:
    content = directory.read(file)
    if not content:
        raise BrokerError(f"cannot use {file}: it is empty")
    return content


def _report_data(options: argparse.Namespace) -> bytes:
    name, lengths = (
        ("nonce", NONCE_BYTES) if options.nonce is not None else ("report-data", _REPORT_DATA)
    )
    try:
        given = bytes.fromhex(options.nonce if name == "nonce" else options.report_data)
    except ValueError as error:
        raise BrokerError(f"cannot use --{name}: it is not hex") from error
    if len(given) not in lengths:
        raise BrokerError(
            f"cannot use --{name}: it is not {lengths.start} to {lengths.stop - 1} bytes long"
        )
    return bound_to(given) if name == "nonce" else given


def _seal_key(options: argparse.Namespace) -> None:
    from sealrun_broker.sealing import new_signer

    private, public = new_signer()
    try:
        directory.write(os.path.abspath(f"{options.prefix}-private.json"), private)
        directory.write(os.path.abspath(f"{options.prefix}-public.json"), public, 0o644)
    except OSError as error:
        raise BrokerError(f"cannot write {options.prefix}-….json: {error.strerror}") from error
    print(f"store {options.prefix}-public.json as a resource, and seal with its URI as --kid")


def _seal(options: argparse.Namespace) -> None:
    from sealrun_broker import sealing

    if options.kind == "vault":
        payload = sealing.vault(options.uri)
    else:
        content = _content(options.file, bounds.RESOURCE_BYTES)
        payload = sealing.envelope(content, directory.read(options.key), options.key_id)
    if options.place is not None:
        payload = sealing.placed(payload, options.place)
    print(sealing.sealed(payload, directory.read(options.signer), options.kid))


def _content(file: str, limit: int) -> bytes:
    if file == "-":
        return directory.read_stream(sys.stdin.buffer, limit, "the standard input")
    return directory.read(file, limit)


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
