"""Phases at once, everything else now and then."""

from sealrun_agent.progress import Progress
from sealrun_protocol.errors import Phase


def test_the_rate_is_bounded_for_each_container_and_phase() -> None:
    sent: list[tuple[str, Phase, str, int, int]] = []
    progress = Progress(lambda *report: sent.append(report))
    for done in range(1000):
        progress.report("a", Phase.PULL, "layer", done, 1000)
    progress.report("a", Phase.PULL, "layer", 1000, 1000)
    progress.report("b", Phase.PULL, "layer", 0, 1)
    progress.report("a", Phase.START, "creating", 0, 0)
    progress.report("a", Phase.PULL, "again", 0, 0)
    progress.forget("a")
    progress.report("a", Phase.PULL, "new", 0, 0)
    assert [(report[0], report[1], report[3]) for report in sent] == [
        ("a", Phase.PULL, 0),
        ("a", Phase.PULL, 1000),  # the end of a layer is always told
        ("b", Phase.PULL, 0),
        ("a", Phase.START, 0),
        ("a", Phase.PULL, 0),
        ("a", Phase.PULL, 0),
    ]
