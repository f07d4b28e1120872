"""Damage to files, drawn from a seed: bytes changed, taken out, doubled, zeroed, moved, and ends cut off."""

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


def ruined(whole: bytes, other: bytes, seed: int) -> bytes:
    """The content after one large damage; `other` is what half a file may go on with. Seeds take turns in its kind."""
    draws = random.Random(seed)
    size = len(whole)
    damaged = bytearray(whole)
    low, high = sorted((draws.randrange(1, size), draws.randrange(1, size)))
    kind = seed % 10
    if kind == 0:  # cut anywhere
        del damaged[low:]
    elif kind == 1:  # bits flipped
        for _ in range(draws.choice([1, 8, 64])):
            damaged[draws.randrange(size)] ^= 1 << draws.randrange(8)
    elif kind == 2:  # goes on as another file
        damaged[low:] = other[draws.randrange(len(other)) :]
    elif kind == 3:  # nothing
        damaged.clear()
    elif kind == 4:  # a range of zeros
        damaged[low : low + 1024] = bytes(len(damaged[low : low + 1024]))
    elif kind == 5:  # its beginning, where most formats say what they are
        for _ in range(draws.randint(1, 4)):
            damaged[draws.randrange(min(64, size))] = draws.randrange(256)
    elif kind == 6:  # its end, where the index of a film may stand
        for _ in range(draws.randint(1, 8)):
            damaged[-draws.randint(1, min(size, 1500))] = draws.randrange(256)
    elif kind == 7:  # blocks in another order
        damaged = damaged[high:] + damaged[low:high] + damaged[:low]
    elif kind == 8:  # something in front
        damaged[:0] = draws.randbytes(draws.choice([1, 16, 512]))
    else:  # its middle taken out
        del damaged[low:high]
    return bytes(damaged)
