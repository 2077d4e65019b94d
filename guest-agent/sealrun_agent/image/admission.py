"""Whether the tenant's image security policy lets an image in: fetches signatures, asks each requirement.

Sigstore's signatures lie beside the image, under the tag `sha256-<digest>.sig`; those of simple signing
below the address that `signature_lookaside` gives for the image, as `repository@sha256=<digest>/signature-N`.
They are fetched only where the policy asks for their kind. Their number and size are bounded; where they
come from does not matter.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Final

import msgspec
from sealrun_protocol import limits, urls
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.image import signature_policy
from sealrun_agent.image.connection import Endpoint
from sealrun_agent.image.http_client import Place
from sealrun_agent.image.manifest import MANIFEST_TYPES, Descriptor
from sealrun_agent.image.policy import ImagePolicy
from sealrun_agent.image.reference import Reference, is_sha256
from sealrun_agent.image.refusal import refusal
from sealrun_agent.image.registry import Registry
from sealrun_agent.image.retry import patiently
from sealrun_agent.image.signature import (
    NotSigned,
    Sigstore,
    Subject,
    check_openpgp,
    check_sigstore,
)
from sealrun_agent.image.signature_policy import Accept, Key, Reject, Signed

_PAYLOAD_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_ANNOTATION: Final = "dev.cosignproject.cosign/signature"
_REASONS: Final = 3  # that are told, of signatures that do not count


class _Attachments(msgspec.Struct, frozen=True, rename="camel"):
    layers: tuple[Descriptor, ...]
    media_type: str = ""


class Admission:
    """Of one image. registry: a new one of the image's; resource: what the broker has."""

    def __init__(
        self,
        policy: ImagePolicy,
        reference: Reference,
        registry: Callable[[], Registry],
        resource: Callable[[str], bytes],
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._registry = registry
        self._resource = resource

    def admit(self, digest: str) -> bool:
        """Refuse an image whose manifest has this digest, or let it in; True where a signature that the
        policy asks for vouches for it. Raises VerifyError(IMAGE_NOT_SIGNED, SIGNATURE_POLICY_INVALID,
        LIMIT_EXCEEDED), PullError."""
        text = self._policy.security_policy.encode()
        if uri := self._policy.security_policy_uri:
            text = self._resource(uri)
        if not text:
            return False
        vouched = False
        for requirement in signature_policy.parse(text).of(self._reference):
            match requirement:
                case Accept():
                    pass
                case Reject():
                    raise self._refused(digest, "it says reject")
                case Signed():
                    self._check(requirement, digest)
                    vouched = True
        return vouched

    def _check(self, wanted: Signed, digest: str) -> None:
        """One good signature is enough."""
        subject = Subject(self._reference, digest, wanted.identity)
        keys = [self._key(key) for key in wanted.keys]
        reasons: list[str] = []
        with closing(self._registry()) as registry:
            if wanted.openpgp:
                for message in self._lookaside(registry, digest):
                    # One keyring holds them all, as for gpg itself.
                    if _passes(partial(check_openpgp, message, _ring(keys), subject), reasons):
                        return
            else:
                for found in self._attachments(registry, digest):
                    for key in keys:
                        if _passes(partial(check_sigstore, found, key, subject), reasons):
                            return
        kind = "OpenPGP" if wanted.openpgp else "sigstore"
        told = "; ".join(reasons[:_REASONS]) or "there is none"
        raise self._refused(digest, f"no {kind} signature counts: {told}")

    def _key(self, key: Key) -> bytes:
        return key.data or self._resource(key.uri)

    def _attachments(self, registry: Registry, digest: str) -> Iterator[Sigstore]:
        tag = f"{digest.replace(':', '-')}.sig"
        try:
            document, content_type = registry.manifest(tag)
        except PullError as error:
            if error.code is ErrorCode.IMAGE_NOT_FOUND:
                return
            raise
        what = f"signatures {tag} of {self._reference.name}"
        try:
            read = from_json(document, _Attachments)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise VerifyError(ErrorCode.MANIFEST_INVALID, f"cannot read the {what}") from None
        kind = read.media_type or content_type.partition(";")[0].strip()
        if kind not in MANIFEST_TYPES:
            raise VerifyError(
                ErrorCode.MEDIA_TYPE_UNSUPPORTED, f"{what} are of media type {kind[:120]!a}"
            )
        self._bound(len(read.layers), what)
        for layer in read.layers:
            if layer.media_type != _PAYLOAD_TYPE or _ANNOTATION not in layer.annotations:
                continue
            if not is_sha256(layer.digest) or not 0 <= layer.size <= limits.SIGNATURE_BYTES:
                raise VerifyError(ErrorCode.LIMIT_EXCEEDED, f"{what}: a signature is too long")
            payload = b"".join(registry.blob(layer, "a signature's payload"))
            if f"sha256:{hashlib.sha256(payload).hexdigest()}" != layer.digest:
                raise VerifyError(
                    ErrorCode.DIGEST_MISMATCH, f"a signature's payload is not {layer.digest}"
                )
            yield Sigstore(payload, layer.annotations[_ANNOTATION])

    def _lookaside(self, registry: Registry, digest: str) -> Iterator[bytes]:
        url = signature_policy.scope_lookup(self._policy.lookaside, self._reference)
        if not url:
            raise self._refused(
                digest,
                "OpenPGP signatures are asked for, and signature_lookaside does not say where they are",
            )
        found = urls.URL.fullmatch(url)
        assert found is not None  # init-data was checked
        endpoint = Endpoint(*urls.url_endpoint(url), found["scheme"] == "https")
        base = f"{found['path']}/{self._reference.repository}@{digest.replace(':', '=')}"
        number = 1
        while True:
            self._bound(number - 1, f"OpenPGP signatures of {self._reference.name}")
            message = self._fetched(registry, Place(endpoint, f"{base}/signature-{number}"))
            if message is None:
                return
            yield message
            number += 1

    def _fetched(self, registry: Registry, place: Place) -> bytes | None:
        """None where there is nothing."""
        what = f"signature {place.target}"
        status, body = patiently(lambda: self._asked(registry, place, what), what)
        if status == 404:
            return None
        if body is None:
            raise VerifyError(
                ErrorCode.LIMIT_EXCEEDED, f"{what} is longer than {limits.SIGNATURE_BYTES} bytes"
            )
        return body

    def _asked(self, registry: Registry, place: Place, what: str) -> tuple[int, bytes | None]:
        """Status 200 or 404, and the body; None where it is too long, or not there. Raises Broken, PullError."""
        exchange = registry.http.ask(place, {}, what)
        try:
            if exchange.response.status == 404:
                return 404, None
            if exchange.response.status != 200:
                raise refusal(exchange, what)
            return 200, exchange.body(limits.SIGNATURE_BYTES)
        finally:
            registry.http.finish(exchange)

    def _bound(self, count: int, what: str) -> None:
        if count > limits.SIGNATURES:
            raise VerifyError(
                ErrorCode.LIMIT_EXCEEDED, f"{what}: more than {limits.SIGNATURES} of them"
            )

    def _refused(self, digest: str, cause: str) -> VerifyError:
        return VerifyError(
            ErrorCode.IMAGE_NOT_SIGNED,
            f"image {self._reference} is {digest}: the image security policy refuses it: {cause}"[
                :800
            ],
        )


def _passes(check: Callable[[], None], reasons: list[str]) -> bool:
    try:
        check()
    except NotSigned as error:
        if str(error) not in reasons:
            reasons.append(str(error))
        return False
    return True


def _ring(keys: Sequence[bytes]) -> bytes:
    from sealrun_agent.image.openpgp import dearmored

    return b"".join(dearmored(key) for key in keys)
