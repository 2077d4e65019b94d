"""`[image]` of the init-data: which images, from where, vouched for by whom. No I/O.

Names that CoCo's data hub has too mean the same there; its `cdh.toml` is read for them.
"""

import re
from typing import Any, Final

import msgspec

from sealrun_protocol import proxies, registries
from sealrun_protocol.proxies import Proxy
from sealrun_protocol.resource_uri import ResourceNameInvalid, parse_uri
from sealrun_protocol.urls import HOST, URL, has_port, url_endpoint

_ENDPOINT: Final = re.compile(HOST)
_REGISTRY: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
# A registry written out, in lower case as references have it; then a repository with tag or digest, or a namespace.
_ALLOWED: Final = re.compile(
    r"(?P<registry>(?:\[[0-9a-f:.]{2,45}\]|[a-z0-9.-]{1,253})(?::[0-9]{1,5})?)"
    r"(?P<path>(?:/[a-z0-9._-]{1,255})*)"
    r"(?:/\*|(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?)"
)
_FORMS: Final = "registry/repository[:tag], registry/repository@sha256:…, registry/namespace/*"
_CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----"
# Of cdh.toml's [image]: what is obeyed, and what says nothing about protection.
_FROM_COCO: Final = (
    "authenticated_registry_credentials_uri",
    "image_security_policy",
    "image_security_policy_uri",
    "registry_config",
    "image_pull_proxy",
)
_CERTIFICATES: Final = "extra_root_certificates"
_WITHOUT_EFFECT: Final = frozenset({"max_concurrent_layer_downloads_per_image", "work_dir"})


class WishInvalid(Exception):
    """The text names the member and what is wrong with it, in one line."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """`[image]` of sealrun.toml.

    allowed: patterns of image references; None = every image, or none where there is a TEE and no policy. decryption_keys: kbs:/// URIs of
    private keys (PEM). insecure_registries: host[:port] that is spoken to in plain http.
    ca_certificates: PEM, trusted for registries in addition to the guest image's own.
    insecure_unpinned_keys: an encrypted image is opened although neither `allowed` names its digest nor
        a signature vouches for it. A hostile registry can then put a layer of its own beside the
        encrypted ones.
    insist_on_registry: the host's cache is not asked for what the image consists of.
    image_security_policy: containers-policy.json(5), as text, or the kbs:/// URI of one.
    signature_lookaside: by scope of the docker transport (or "", for all others), the http(s) address
        below which simple signing's signatures lie.
    authenticated_registry_credentials_uri: kbs:/// URI of a containers-auth.json(5).
    registry_config: containers-registries.conf(5). image_pull_proxy: see proxies.py.
    registry_endpoints: host:port of token servers and blob stores that registries send to, which the
        host's relay is to open.
    """

    allowed: tuple[str, ...] | None = None
    decryption_keys: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    ca_certificates: str = ""
    insecure_unpinned_keys: bool = False
    insist_on_registry: bool = False
    image_security_policy: str = ""
    image_security_policy_uri: str = ""
    signature_lookaside: dict[str, str] = {}
    authenticated_registry_credentials_uri: str = ""
    registry_config: registries.Configuration = registries.NONE
    image_pull_proxy: Proxy = Proxy()
    registry_endpoints: tuple[str, ...] = ()


def endpoints(image: Image) -> tuple[tuple[str, int], ...]:
    """(host, port) that the relay opens beside the places of the image itself."""
    found = [url_endpoint(url) for url in image.signature_lookaside.values()]
    found += [(proxy.host, proxy.port) for proxy in image.image_pull_proxy.addresses()]
    for text in image.registry_endpoints:
        match = _ENDPOINT.fullmatch(text)
        assert match is not None  # `check` looked
        found.append((match["v6"] or match["host"], int(match["port"])))
    return tuple(found)


def coco_members(table: dict[str, Any]) -> dict[str, Any]:
    """`[image]` of cdh.toml by the names that Image has. Raises WishInvalid for what asks for anything
    that nobody here would do."""
    members = {name: value for name, value in table.items() if name not in _WITHOUT_EFFECT}
    pems = members.pop(_CERTIFICATES, [])
    if not isinstance(pems, list) or not all(isinstance(pem, str) for pem in pems):
        raise WishInvalid(f"{_CERTIFICATES} must be an array of certificates in PEM")
    for name in members:
        if name not in _FROM_COCO:
            raise WishInvalid(f"{name[:80]!a} is not obeyed by this agent")
    return members | ({"ca_certificates": "\n".join(pems)} if pems else {})


def check(image: Image) -> None:
    """What the types do not say. Raises WishInvalid."""
    for pattern in image.allowed or ():
        _check_allowed(pattern)
    uris = [("decryption_keys", uri) for uri in image.decryption_keys]
    for name in ("image_security_policy_uri", "authenticated_registry_credentials_uri"):
        uris += [(name, uri)] if (uri := getattr(image, name)) else []
    for name, uri in uris:
        try:
            parse_uri(uri)
        except ResourceNameInvalid as error:
            raise WishInvalid(f"{name}: {error}") from error
    for registry in image.insecure_registries:
        if not _REGISTRY.fullmatch(registry):
            raise WishInvalid(f"insecure_registries: {registry[:200]!a} is not host[:port]")
    if image.ca_certificates and _CERTIFICATE not in image.ca_certificates:
        raise WishInvalid("ca_certificates must be certificates in PEM")
    if image.image_security_policy and image.image_security_policy_uri:
        raise WishInvalid("image_security_policy and image_security_policy_uri exclude each other")
    for scope, url in image.signature_lookaside.items():
        match = URL.fullmatch(url)
        if match is None or (match["port"] and not has_port(match)):
            name = f"signature_lookaside.{scope[:200]!a}"
            raise WishInvalid(f"{name}: {url[:200]!a} is not http[s]://host[:port][/path]")
    proxy = image.image_pull_proxy
    for name, url in (("https_proxy", proxy.https_proxy), ("http_proxy", proxy.http_proxy)):
        if url and not proxies.is_address(url):  # which may have a password in it
            raise WishInvalid(f"image_pull_proxy.{name}: it is not {proxies.FORM}")
    for text in image.registry_endpoints:
        found = _ENDPOINT.fullmatch(text)
        if found is None or not has_port(found):
            raise WishInvalid(f"registry_endpoints: {text[:200]!a} is not host:port")


def _check_allowed(pattern: str) -> None:
    """Refuse what no reference can match: its author believes that something may run."""
    found = _ALLOWED.fullmatch(pattern) if len(pattern) <= 512 else None
    registry, path = (found["registry"], found["path"]) if found else ("", "")
    written_out = registry == "localhost" or any(mark in registry for mark in ".:[")
    if not written_out or not (path or pattern.endswith("/*")):
        raise WishInvalid(f"allowed: {pattern[:200]!a} is none of {_FORMS}")
    alone = registry == "docker.io" and path.count("/") == 1 and not pattern.endswith("/*")
    if alone or registry == "index.docker.io":
        raise WishInvalid(
            f"allowed: {pattern[:200]!a} matches nothing: the name is docker.io/library/… there"
        )
