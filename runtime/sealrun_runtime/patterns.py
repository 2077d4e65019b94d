"""What texts of config.json and of the settings look like, and in words what one that does not lacks."""

from collections.abc import Mapping
from typing import Final

C_STRING: Final = r"^[^\x00]*$"
SOME_PATH: Final = r"^[^\x00]+$"
ABSOLUTE: Final = r"^/[^\x00]*$"
RLIMIT: Final = "^RLIMIT_[A-Z]+$"
ACCESS: Final = "^[rwm]*$"
NUMBERS: Final = r"^[0-9,\-\s]*$"
PAGE_SIZE: Final = "^[1-9][0-9]*[KMG]B$"
VERSION: Final = r"^1\.[0-9]+\.[0-9]+([-+].*)?$"
ENDPOINT: Final = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"
REGISTRY: Final = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?$"
DIRECTORY: Final = r"^(/.*)?$"

WORDS: Final[Mapping[str, str]] = {
    C_STRING: "it has a NUL character in it",
    SOME_PATH: "it is empty, or has a NUL character in it",
    ABSOLUTE: "it is not an absolute path",
    RLIMIT: "it is not the name of a limit, such as RLIMIT_NOFILE",
    ACCESS: "it is not made of r, w and m",
    NUMBERS: "it is not a list of numbers, such as 0-2,7",
    PAGE_SIZE: "it is not a size of pages, such as 2MB",
    VERSION: "it is not a version 1.x.y of the specification",
    ENDPOINT: "it is not HOST:PORT",
    REGISTRY: "it is not HOST or HOST:PORT",
    DIRECTORY: "it is not an absolute path",
}
