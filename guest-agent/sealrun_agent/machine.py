"""What the agent runs on. `provision` says what that is in a real VM; a test may say something else, and
the service (service.py) does not know the difference.
"""

from collections.abc import Callable
from typing import NamedTuple

from sealrun_protocol import init_data

from sealrun_agent import disks
from sealrun_agent.container.surroundings import Images, Shares
from sealrun_agent.dial import Dial
from sealrun_agent.policy import Policy
from sealrun_agent.processes import Processes
from sealrun_agent.vault import Vault


class Machine(NamedTuple):
    """What the agent runs on, and does to it. set_clock, follow_clock: see clock.py.

    tee: as in Hello. directory: private, for bundles and sockets. bind: has the TEE vouch for the
    init-data; raises AttestError where it is not what the VM was launched with. images: made once the
    policy is known. evidence: fresh, over report data, as JSON of {tee, evidence}; any thread.
    vault: the tenant's broker, with a way to it. record: writes an event into the TEE's log (domain,
    operation, content). crun_options: more global options for crun. load_drivers: of devices that
    came after the boot. find_disk: see Surroundings. take_added: use what the VM was given since, and say how many CPUs are
    online; raises RunError."""

    tee: str
    directory: str
    bind: Callable[[init_data.InitData], None]
    set_hostname: Callable[[str], None]
    set_clock: Callable[[int], None]
    follow_clock: Callable[[int], None]
    images: Callable[[Policy, Processes], Images]
    shares: Shares
    evidence: Callable[[init_data.InitData, bytes], bytes]
    take_added: Callable[[], int]
    vault: Callable[[init_data.InitData, Dial], Vault]
    record: Callable[[str, str, dict[str, str]], bool] = lambda _domain, _operation, _content: False
    crun_options: tuple[str, ...] = ()
    load_drivers: Callable[[], None] = lambda: None
    find_disk: Callable[[str], tuple[int, int]] = disks.number
