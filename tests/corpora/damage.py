"""Damage to files, drawn from a seed: bytes changed, taken out, doubled, and the end cut off."""

import random


def mutated(whole: bytes, seed: int) -> bytes:
    """The content with one to four damages, the same for the same seed."""
    draws = random.Random(seed)
    damaged = bytearray(whole)
    for _ in range(draws.randint(1, 4)):
        place = draws.randrange(len(damaged) or 1)
        length = draws.choice([1, 2, 8, 64])
        what = draws.choice(["change", "change", "take out", "double", "cut"])
        if what == "change":
            damaged[place : place + length] = draws.randbytes(len(damaged[place : place + length]))
        elif what == "take out":
            del damaged[place : place + length]
        elif what == "double":
            damaged[place:place] = damaged[place : place + length]
        else:
            del damaged[max(place, len(damaged) * 3 // 4) :]
    return bytes(damaged)
