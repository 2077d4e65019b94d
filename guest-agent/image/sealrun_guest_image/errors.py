"""What can go wrong while the guest image is built.

BuildError     the one error that leaves this package; text as everywhere: lower case, no full stop
"""


class BuildError(Exception):
    """The guest image cannot be built. `remedy` says what the user can do."""

    def __init__(self, text: str, *, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy
