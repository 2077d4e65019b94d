"""Which endpoints a guest may reach through the relay: a pure function of what host, image
reference and init-data name. Nothing else on the host's network or loopback is ever dialled.

An endpoint is a host exactly as it is named (lower case, an IPv6 address without brackets) and a
port. Names are not looked through: `localhost` does not open 127.0.0.1, nor the other way round.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from sealrun_runtime.handover import Handover

if TYPE_CHECKING:
    from sealrun_protocol import registries

HTTPS: Final = 443
HTTP: Final = 80

# Where a registry's name is not (only) where its API, its token server and its blobs are. Registries
# that are not listed here are expected to serve everything under their own name; what else one of
# them needs, the operator adds to relay.endpoints.
_ALSO: Final[dict[str, tuple[str, ...]]] = {
    "docker.io": (
        "registry-1.docker.io",
        "auth.docker.io",
        "production.cloudflare.docker.com",
        "production.cloudfront.docker.com",
    ),
    "quay.io": ("cdn.quay.io", "cdn01.quay.io", "cdn02.quay.io", "cdn03.quay.io"),
    "ghcr.io": ("pkg-containers.githubusercontent.com",),
}
_ALIASES: Final = {"index.docker.io": "docker.io"}


class Endpoint(NamedTuple):
    """A TCP endpoint by name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def endpoint(host: str, port: int) -> Endpoint:
    """An endpoint as all are compared."""
    return Endpoint(host.lower(), port)


def parse(text: str, default_port: int = 0) -> Endpoint:
    """`host:port`, `[v6]:port`, or `host` with a default port. Raises ValueError."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"cannot read the endpoint {text!r}: a bracket is missing")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
    number = int(port) if colon and port.isascii() and port.isdigit() else default_port
    if not host or not 0 < number < 65536 or (colon and not port.isdigit()):
        raise ValueError(f"cannot read the endpoint {text!r}: it is not host:port")
    return endpoint(host, number)


def of_registry(registry: str, insecure_registries: Iterable[str] = ()) -> frozenset[Endpoint]:
    """Where the API of `registry` (host or host:port) is. The port for plain http is among them only
    where the registry is listed as insecure. Raises ValueError."""
    registry = registry.lower()
    registry = _ALIASES.get(registry, registry)
    if registry in _ALSO:
        hosts = (registry, *_ALSO[registry])
        return frozenset(Endpoint(host, HTTPS) for host in hosts)
    found = {parse(registry, HTTPS)}
    if registry in {name.lower() for name in insecure_registries}:
        found.add(parse(registry, HTTP))
    return frozenset(found)


def registry_of(image: str) -> str:
    """The registry of an image reference `registry/repository[:tag][@digest]`; docker.io where the
    reference begins with none."""
    first, slash, _ = image.partition("/")
    named = slash and (first == "localhost" or any(mark in first for mark in ".:["))
    return first.lower() if named else "docker.io"


def allowed(handover: Handover) -> frozenset[Endpoint]:
    """All that the guest of this sandbox may reach: the registry of the image that it was asked to
    run, what its init-data names, what the operator allows to all."""
    insecure = handover.config.image.insecure_registries
    found = set[Endpoint]()
    if handover.init_data:
        # tomllib is worth its megabyte only here.
        from sealrun_protocol import init_data

        try:
            document = init_data.parse(handover.init_data)
        except init_data.InitDataInvalid:
            return frozenset()  # the guest will refuse it and say why
        insecure += document.image.insecure_registries
        found.update(endpoint(host, port) for host, port in init_data.endpoints(document))
        found.update(of_image(document.image.registry_config, handover.image, insecure))
    else:
        found.update(of_registry(registry_of(handover.image), insecure))
    found.update(parse(text) for text in handover.config.relay.endpoints)
    return frozenset(found)


def of_image(
    configuration: "registries.Configuration", image: str, insecure: tuple[str, ...]
) -> frozenset[Endpoint]:
    """Where the init-data says that the image lies; nowhere, if it is blocked."""
    from sealrun_protocol import registries

    try:
        sources = registries.sources_of(configuration, image)
    except (registries.Blocked, registries.RegistriesInvalid):
        return frozenset()  # the guest will refuse it too
    found = set[Endpoint]()
    for source in sources:
        registry = registry_of(source.name)
        try:
            found.update(of_registry(registry, [*insecure, *[registry] * source.insecure]))
        except ValueError:
            continue  # a port that is none: the guest says so
    return frozenset(found)
