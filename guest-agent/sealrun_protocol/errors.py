"""What can go wrong in the guest, as host and guest name it to each other.

A failure crosses the boundary as *phase + code + one bounded line of text*, never as a traceback.
With an active TEE the text is the code's fixed `summary`, so that nothing of the tenant leaks into
the host's log; the code alone still tells the user what to do (`remedy`).

This table is the one place where codes, their sentences and their remedies stand. A code's text is
lower case, without a full stop, and completes "cannot run the container: …".
"""

from enum import StrEnum
from typing import Final, NamedTuple


class Phase(StrEnum):
    """Where in the life of a container something failed, in the order of that life."""

    BOOT = "boot"
    ATTEST = "attest"
    PULL = "pull"
    VERIFY = "verify"
    DECRYPT = "decrypt"
    START = "start"
    RUN = "run"


class ErrorCode(StrEnum):
    """One per distinct thing that the user can do something about."""

    # boot
    BOOT_FAILED = "boot-failed"
    PROTOCOL_VIOLATION = "protocol-violation"
    INTERNAL = "internal"
    # attest
    INIT_DATA_INVALID = "init-data-invalid"
    INIT_DATA_MISMATCH = "init-data-mismatch"
    TEE_UNAVAILABLE = "tee-unavailable"
    SAMPLE_NOT_ALLOWED = "sample-not-allowed"
    BROKER_NOT_CONFIGURED = "broker-not-configured"
    BROKER_UNREACHABLE = "broker-unreachable"
    BROKER_UNTRUSTED = "broker-untrusted"
    BROKER_PROTOCOL = "broker-protocol"
    EVIDENCE_REFUSED = "evidence-refused"
    KEY_DENIED = "key-denied"
    KEY_NOT_FOUND = "key-not-found"
    SEAL_INVALID = "seal-invalid"
    # pull
    REFERENCE_INVALID = "reference-invalid"
    ENDPOINT_REFUSED = "endpoint-refused"
    REGISTRY_UNREACHABLE = "registry-unreachable"
    REGISTRY_UNTRUSTED = "registry-untrusted"
    REGISTRY_DENIED = "registry-denied"
    REGISTRY_BUSY = "registry-busy"
    REGISTRY_BLOCKED = "registry-blocked"
    REGISTRY_PROTOCOL = "registry-protocol"
    CREDENTIALS_INVALID = "credentials-invalid"
    IMAGE_NOT_FOUND = "image-not-found"
    PLATFORM_NOT_FOUND = "platform-not-found"
    NO_SPACE = "no-space"
    SCRATCH_UNUSABLE = "scratch-unusable"
    # verify
    IMAGE_NOT_ALLOWED = "image-not-allowed"
    IMAGE_NOT_SIGNED = "image-not-signed"
    SIGNATURE_POLICY_INVALID = "signature-policy-invalid"
    MEDIA_TYPE_UNSUPPORTED = "media-type-unsupported"
    LIMIT_EXCEEDED = "limit-exceeded"
    MANIFEST_INVALID = "manifest-invalid"
    DIGEST_MISMATCH = "digest-mismatch"
    LAYER_MALFORMED = "layer-malformed"
    LAYER_UNSAFE = "layer-unsafe"
    # decrypt
    KEY_NOT_CONFIGURED = "key-not-configured"
    KEY_WRONG = "key-wrong"
    ENCRYPTION_INVALID = "encryption-invalid"
    LAYER_TAMPERED = "layer-tampered"
    # start and run
    NETWORK_FAILED = "network-failed"
    SPEC_REFUSED = "spec-refused"
    POLICY_DENIED = "policy-denied"
    PROGRAM_NOT_FOUND = "program-not-found"
    PROGRAM_NOT_EXECUTABLE = "program-not-executable"
    CONTAINER_UNKNOWN = "container-unknown"
    CONTAINER_EXISTS = "container-exists"
    WRONG_STATE = "wrong-state"
    RUNTIME_FAILED = "runtime-failed"


class ErrorInfo(NamedTuple):
    """The fixed sentence of a code, and what its reader can do."""

    summary: str
    remedy: str


ERRORS: Final[dict[ErrorCode, ErrorInfo]] = {
    ErrorCode.BOOT_FAILED: ErrorInfo(
        "the guest could not set itself up",
        "read the guest's console in the log; reinstall the guest image if it is incomplete",
    ),
    ErrorCode.PROTOCOL_VIOLATION: ErrorInfo(
        "the other side of the agent channel broke the protocol",
        "install the runtime and the guest image from the same release",
    ),
    ErrorCode.INTERNAL: ErrorInfo(
        "the agent met a condition it does not know",
        "run again with --debug and report the guest's console",
    ),
    ErrorCode.INIT_DATA_INVALID: ErrorInfo(
        "the init-data cannot be read",
        "check the TOML that io.sealrun.init-data carries",
    ),
    ErrorCode.INIT_DATA_MISMATCH: ErrorInfo(
        "the init-data is not the one this VM was launched with",
        "someone between tenant and VM changed it: do not trust this host",
    ),
    ErrorCode.TEE_UNAVAILABLE: ErrorInfo(
        "no evidence can be had from the TEE",
        "check the host's TEE support with its operator",
    ),
    ErrorCode.SAMPLE_NOT_ALLOWED: ErrorInfo(
        "this VM has no TEE, and the init-data does not allow sample evidence",
        "run on a node with a TEE, or, for tests only, set insecure_sample_evidence in the init-data",
    ),
    ErrorCode.BROKER_NOT_CONFIGURED: ErrorInfo(
        "the image needs a key, and the init-data names no key broker",
        "add the key broker's url to aa.toml in the init-data",
    ),
    ErrorCode.BROKER_UNREACHABLE: ErrorInfo(
        "the key broker cannot be reached",
        "check that the broker runs and that its url in the init-data is right",
    ),
    ErrorCode.BROKER_UNTRUSTED: ErrorInfo(
        "the key broker's TLS certificate is not the one that the init-data trusts",
        "put the broker's CA certificate into the init-data",
    ),
    ErrorCode.BROKER_PROTOCOL: ErrorInfo(
        "the key broker's answer does not follow the KBS protocol",
        "check that the url is that of a KBS which speaks version 0.4.0",
    ),
    ErrorCode.EVIDENCE_REFUSED: ErrorInfo(
        "the key broker refused the evidence of this VM",
        "compare the broker's policy and reference values with what the VM is",
    ),
    ErrorCode.KEY_DENIED: ErrorInfo(
        "the key broker's policy denies this VM the key",
        "change the broker's resource policy, or run the image that it allows",
    ),
    ErrorCode.KEY_NOT_FOUND: ErrorInfo(
        "the key broker has no such key",
        "store the key in the broker under the name that the init-data gives",
    ),
    ErrorCode.SEAL_INVALID: ErrorInfo(
        "a sealed secret cannot be opened",
        "seal it again; its signer's public key must be in the broker under the name that it gives",
    ),
    ErrorCode.REFERENCE_INVALID: ErrorInfo(
        "the image reference cannot be read",
        "write it as registry/repository:tag or registry/repository@sha256:…",
    ),
    ErrorCode.ENDPOINT_REFUSED: ErrorInfo(
        "the host's relay does not open this endpoint for the guest",
        "add it to relay.endpoints in sealrun.toml if the guest may reach it",
    ),
    ErrorCode.REGISTRY_UNREACHABLE: ErrorInfo(
        "the registry cannot be reached",
        "check the registry's name and port, and that it runs",
    ),
    ErrorCode.REGISTRY_UNTRUSTED: ErrorInfo(
        "the registry's TLS certificate is not trusted",
        "add its CA to the init-data, or name it there in insecure_registries if it speaks plain http",
    ),
    ErrorCode.REGISTRY_DENIED: ErrorInfo(
        "the registry denies access to the image",
        "give the guest credentials for it, or for its proxy, or check the image's name",
    ),
    ErrorCode.REGISTRY_BUSY: ErrorInfo(
        "the registry limits how often it is asked",
        "wait, give the guest credentials for it, or name a mirror in registry_config of the init-data",
    ),
    ErrorCode.REGISTRY_BLOCKED: ErrorInfo(
        "the init-data blocks this registry",
        "use another registry, or change registry_config in the init-data",
    ),
    ErrorCode.REGISTRY_PROTOCOL: ErrorInfo(
        "the registry's answer does not follow the distribution specification",
        "check that the address is that of an OCI registry",
    ),
    ErrorCode.CREDENTIALS_INVALID: ErrorInfo(
        "the registry credentials of the key broker cannot be used",
        "store a containers-auth.json with user and password, or a token, for this registry in the broker",
    ),
    ErrorCode.IMAGE_NOT_FOUND: ErrorInfo(
        "the registry has no such image",
        "check the name and tag, and that the image was pushed",
    ),
    ErrorCode.PLATFORM_NOT_FOUND: ErrorInfo(
        "the image has no variant for this platform",
        "build and push the image for the VM's platform",
    ),
    ErrorCode.NO_SPACE: ErrorInfo(
        "the guest has no space left",
        "give the VM a larger scratch disk (vm.scratch in sealrun.toml or io.sealrun.scratch), or more "
        "memory where it has none",
    ),
    ErrorCode.SCRATCH_UNUSABLE: ErrorInfo(
        "the guest cannot use its scratch disk",
        "look at the VM's console and whether the host has space left in vm.scratch_directory, or set "
        "vm.scratch to 0 in sealrun.toml",
    ),
    ErrorCode.IMAGE_NOT_ALLOWED: ErrorInfo(
        "the init-data does not allow this image",
        "add the image to the allowed images of the init-data",
    ),
    ErrorCode.IMAGE_NOT_SIGNED: ErrorInfo(
        "the image security policy does not accept this image",
        "sign the image with a key that the policy names, or change the policy; with a TEE and without a"
        " policy, allowed must name the image's digest",
    ),
    ErrorCode.SIGNATURE_POLICY_INVALID: ErrorInfo(
        "the image security policy cannot be obeyed",
        "correct the policy.json, or its keys, in the init-data or the key broker",
    ),
    ErrorCode.MEDIA_TYPE_UNSUPPORTED: ErrorInfo(
        "the image uses a media type that is not supported",
        "push it as an OCI image or Docker schema 2 image",
    ),
    ErrorCode.LIMIT_EXCEEDED: ErrorInfo(
        "the image exceeds a limit of the agent",
        "make its layers smaller or fewer, or do without what the text names",
    ),
    ErrorCode.MANIFEST_INVALID: ErrorInfo(
        "the image's manifest or configuration cannot be read",
        "push the image again",
    ),
    ErrorCode.DIGEST_MISMATCH: ErrorInfo(
        "what was received does not have the digest that was asked for",
        "the registry or somebody on the way changed the image: push it again, or use another registry",
    ),
    ErrorCode.LAYER_MALFORMED: ErrorInfo(
        "a layer cannot be unpacked",
        "push the image again",
    ),
    ErrorCode.LAYER_UNSAFE: ErrorInfo(
        "a layer tries to write outside of its directory",
        "do not trust this image",
    ),
    ErrorCode.KEY_NOT_CONFIGURED: ErrorInfo(
        "the image is encrypted, and the init-data names no key for it",
        "list the key in decryption_keys of the init-data",
    ),
    ErrorCode.KEY_WRONG: ErrorInfo(
        "none of the keys opens the encrypted layer",
        "store in the broker the private key that the image was encrypted for",
    ),
    ErrorCode.ENCRYPTION_INVALID: ErrorInfo(
        "the layer's encryption annotations cannot be read",
        "encrypt the image again",
    ),
    ErrorCode.LAYER_TAMPERED: ErrorInfo(
        "an encrypted layer does not match its authentication code",
        "somebody changed the layer: do not trust this registry",
    ),
    ErrorCode.NETWORK_FAILED: ErrorInfo(
        "the guest could not set up its network",
        "look at the interfaces and routes in the container's network namespace",
    ),
    ErrorCode.SPEC_REFUSED: ErrorInfo(
        "the guest does not accept the container's configuration",
        "change what the text names in config.json",
    ),
    ErrorCode.POLICY_DENIED: ErrorInfo(
        "the tenant's policy denies this request",
        "ask the tenant to allow it in the init-data",
    ),
    ErrorCode.PROGRAM_NOT_FOUND: ErrorInfo(
        "the program to run is not in the image", "check the command and the image"
    ),
    ErrorCode.PROGRAM_NOT_EXECUTABLE: ErrorInfo(
        "the program to run is not executable", "check the file's mode in the image"
    ),
    ErrorCode.CONTAINER_UNKNOWN: ErrorInfo(
        "container does not exist", "check the id with `sealrun list`"
    ),
    ErrorCode.CONTAINER_EXISTS: ErrorInfo(
        "container with this id exists already", "delete it first"
    ),
    ErrorCode.WRONG_STATE: ErrorInfo(
        "the container's state does not allow this", "check it with `sealrun state`"
    ),
    ErrorCode.RUNTIME_FAILED: ErrorInfo(
        "crun in the guest could not do it",
        "change what the text names; the guest's console in the log has more",
    ),
}
