"""Names in the virtio-fs device by which the host shares directories and files with the guest. No I/O.

The device holds one directory for each container, called by the container's id. In that, `ROOT` is
the container's root file system, and `N` the source of its config's mount number N.
"""

from typing import Final

TAG: Final = "sealrun.host"
ROOT: Final = "root"
