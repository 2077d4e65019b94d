"""Changed files of a corpus, by a seed: the same seed, the same changes."""

import random
from collections.abc import Mapping

_ODD = (b"\0", b"\xff", b"\n", b"\r\n", b"/", b"..", b'"', b"\\", b",", b"%", b"9" * 20, b"-1")


def mutated(files: Mapping[str, bytes], dice: random.Random) -> bytes:
    """One of the files, with a few pieces changed, cut out, doubled, moved, or taken from another one."""
    names = sorted(files)
    data = files[dice.choice(names)]
    for _ in range(dice.randint(1, 4)):
        start = dice.randint(0, len(data))
        end = min(len(data), start + dice.choice((0, 1, 4, 16, 512)))
        match dice.randrange(6):
            case 0:
                piece = bytes(dice.randrange(256) for _ in range(end - start))
            case 1:
                piece = bytes(byte ^ 1 << dice.randrange(8) for byte in data[start:end])
            case 2:
                piece = data[start:end] * 2
            case 3:
                piece = b""
            case 4:
                piece = dice.choice(_ODD)
            case _:
                other = files[dice.choice(names)]
                at = dice.randint(0, len(other))
                piece = other[at : at + dice.choice((8, 64, 512))]
        data = data[:start] + piece + data[end:]
    return data
