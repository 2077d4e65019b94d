"""The agent's version, which Hello tells the host."""

from typing import Final

VERSION: Final = "0.1.0"
