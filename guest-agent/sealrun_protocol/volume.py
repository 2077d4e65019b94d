"""A volume of the sandbox's own: how host and guest speak of one. No I/O."""

import msgspec


class Volume(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory that the guest makes empty, on its scratch disk, and that lives as long as the sandbox.

    name: whatever the host calls it; all containers that are given one of the same name have the same.
    mode, uid, gid: of the directory when it is made.
    memory: it is in memory instead, `size` bytes at most (0: as much as the kernel gives one).
    copy_up: it begins as a copy, with owner and mode, of what the image has at that place, if it has a
        directory there.
    file: it is an empty regular file instead of a directory.
    subpath: the container has this part of it, a relative path without `.` and `..`; what of it is missing is
        made, with the volume's mode and owner. Empty: all of it.
    """

    name: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    memory: bool = False
    size: int = 0
    copy_up: bool = False
    file: bool = False
    subpath: str = ""
