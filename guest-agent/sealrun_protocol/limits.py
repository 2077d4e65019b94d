"""Every bound on what one side accepts of the other, one a line, with its unit and its reason."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# The channel
MESSAGE_BYTES: Final = 8 * MIB  # one message: a config.json with Podman's seccomp profile is 60 KiB
STREAM_CHUNK_BYTES: Final = 64 * KIB  # payload of one StreamData: a pipe's size
STREAM_WINDOW_BYTES: Final = 1 * MIB  # unacknowledged bytes per stream and direction
STREAMS: Final = 256  # open at once in a sandbox
ERROR_TEXT_BYTES: Final = 1 * KIB  # one line for a person
FILE_BYTES: Final = 512 * KIB  # one file that the host copies: Podman's secrets have 500 KiB
FILES_BYTES: Final = 6 * MIB  # all of a container's, so that they fit into its message
CONTAINER_ID_LENGTH: Final = 128  # characters: engines take 64
SHARES: Final = 128  # directories and files of one container: each is a mount, and a descriptor
VOLUMES: Final = 128  # of one sandbox: each is a directory, and perhaps a mount
VOLUME_NAME_BYTES: Final = 4096  # hosts call them by paths
DISKS: Final = 8  # block devices of the host in one container: each takes a place in the VM
CLOCK_NS: Final = (
    8_277_292_036 * 10**9 - 1
)  # since 1970: what Linux takes, less the 30 years that it keeps for itself
HELLO_SECONDS: Final = 120  # boot to Hello, under emulation on a loaded machine

# Init-data
INIT_DATA_BYTES: Final = 1 * MIB  # TOML text, after decompression

# The image
MANIFEST_BYTES: Final = 4 * MIB  # the distribution specification's advice for registries
IMAGE_CONFIG_BYTES: Final = 4 * MIB
INDEX_ENTRIES: Final = 256
INDEX_DEPTH: Final = 2  # an index may name an index once
LAYERS: Final = 256
SIGNATURES: Final = 128  # of one image, of one kind
SIGNATURE_BYTES: Final = 64 * KIB  # one of them, or what it signs
LAYER_BLOB_BYTES: Final = 64 * 1024 * MIB  # as stored in the registry
LAYER_TAR_BYTES: Final = 256 * 1024 * MIB  # decompressed
ZSTD_WINDOW_BYTES: Final = 128 * MIB  # what zstd(1) takes without --long: one layer at a time
ZSTD_SMALL_WINDOW_BYTES: Final = (
    8 * MIB
)  # what all decoders should take (RFC 8878): several at once
LAYER_ENTRIES: Final = 4_000_000
LAYER_NAMES_BYTES: Final = (
    64 * MIB
)  # of names that are kept until a layer's end: 350 000 directories
PATH_BYTES: Final = 4096  # PATH_MAX
XATTR_BYTES: Final = 64 * KIB  # XATTR_SIZE_MAX
HTTP_REDIRECTS: Final = 5
HTTP_HEADER_BYTES: Final = 64 * KIB
HTTP_SECONDS: Final = 60  # without a byte from the peer
HTTP_BYTES_PER_SECOND: Final = 1 * KIB  # less than that, while we wait, is a peer that holds us

# What the workload asks of the agent
API_CONNECTIONS: Final = 16  # at once
API_HEAD_BYTES: Final = 16 * KIB
API_BODY_BYTES: Final = 64 * KIB
API_SECONDS: Final = 30  # until a request must be complete

# The event log
EVENTS: Final = 1024  # that the agent records: images that were pulled, decisions that were taken

# The key broker
BROKER_BODY_BYTES: Final = 2 * MIB  # Trustee's own payload limit
BROKER_SECONDS: Final = 60  # one request and its whole answer, however slowly it drips
BROKER_PATIENCE_SECONDS: Final = 10  # for a broker that cannot be reached: it may be starting
BROKER_TOKEN_BYTES: Final = 256 * KIB  # what a broker gives as the proof of an attestation
BROKER_HEADER_BYTES: Final = 32 * KIB  # the longest token that is sent in a header
SEALED_SECRET_BYTES: Final = 256 * KIB  # one, as text
BROKER_ATTEMPTS: Final = 2  # for one resource: as it is, and after a new handshake
BROKER_DETAIL_CHARACTERS: Final = 200  # of its own words, in an error's text
