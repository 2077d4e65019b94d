"""`linux.cgroupsPath` in systemd's form, `slice:prefix:name`, as runc and crun read it: the scope
`prefix-name.scope` in a slice. Nothing is looked up here."""

import re
from typing import Final, NamedTuple

_LENGTH: Final = 255  # of a unit's name, systemd.unit(5)
_CHARACTERS: Final = re.compile(r"[A-Za-z0-9:_.\\-]+")
_ROOT: Final = "-.slice"


class Unit(NamedTuple):
    """A scope and the slice that it lies in, by their full names."""

    slice: str
    scope: str

    @property
    def path(self) -> str:
        """Where its control group is, below that of its systemd."""
        return f"{slice_path(self.slice)}/{self.scope}"

    def beside(self, name: str) -> "Unit":
        """Another scope in the same slice; what a unit's name cannot hold is escaped."""
        return Unit(self.slice, f"{escape(name)}.scope")


def is_unit(cgroups_path: str) -> bool:
    """Whether a path has systemd's form."""
    return cgroups_path.count(":") == 2 and "/" not in cgroups_path


def parse(cgroups_path: str, default_slice: str) -> Unit:
    """Raises ValueError where systemd knows no such names."""
    if not is_unit(cgroups_path):
        raise ValueError(f"{cgroups_path!r} is not of the form slice:prefix:name")
    slice_name, prefix, name = cgroups_path.split(":")
    slice_name = {"": default_slice, "-": _ROOT}.get(slice_name, slice_name)
    if name.endswith(".slice"):
        raise ValueError(f"a container cannot be the slice {name!r}")
    if not name:
        raise ValueError(f"{cgroups_path!r} names no scope")
    scope = f"{prefix}-{name}.scope"
    for one in (slice_name, scope):
        if len(one) > _LENGTH or not _CHARACTERS.fullmatch(one):
            raise ValueError(f"no unit can have the name {one[:80]!r}")
    slice_path(slice_name)
    return Unit(slice_name, scope)


def slice_path(name: str) -> str:
    """systemd.slice(5): `a-b.slice` lies in `a.slice`; `-.slice` is the root. Raises ValueError."""
    if name == _ROOT:
        return ""
    stem = name.removesuffix(".slice")
    parts = stem.split("-")
    if stem == name or not all(parts):
        raise ValueError(f"no slice can have the name {name[:80]!r}")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def escape(name: str) -> str:
    """As systemd-escape(1), but for dashes, which a scope's name may hold."""
    return "".join(
        character if _CHARACTERS.fullmatch(character) and character != "\\" else _hex(character)
        for character in name
    )


def _hex(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode())
