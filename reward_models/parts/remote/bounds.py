"""What untrusted JSON and PNG would cost to parse, determined before they are parsed."""

import struct

PNG = b"\x89PNG\r\n\x1a\n"
MOST_VALUES = 2**20  # of one JSON document
MOST_DIGITS = 400  # of one number: the largest float64 has 309 before its point
DIGITS = bytes.maketrans(b"0123456789", b"0000000000")
NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))


class MalformedRequestError(ValueError):
    """A request that cannot be scored as it is: an HTTP status 4xx, and the reason in one line."""

    def __init__(self, status: int, reason: str):
        self.status = status
        super().__init__(" ".join(reason.split())[:500])


def measure(text: bytes, items: int | None = None) -> None:
    """Raises MalformedRequestError for JSON of too many values, or of more than `items` objects in its top lists.

    The contents of strings are removed first, by byte operations that take the time of a copy. They would be wrong
    after a backslash outside a string, but a parser stops there.
    """
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MOST_VALUES:
        raise MalformedRequestError(413, f"JSON of more than {MOST_VALUES} texts; accepted: at most as many")
    outside = b"".join(bare.split(b'"')[::2])
    if sum(map(outside.count, (b",", b"{", b"["))) > MOST_VALUES:
        raise MalformedRequestError(413, f"JSON of more than {MOST_VALUES} values; accepted: at most as many")
    if b"0" * MOST_DIGITS in outside.translate(DIGITS):
        raise MalformedRequestError(422, f"a number of {MOST_DIGITS} digits or more")
    if items is not None and _objects(outside.translate(None, NO_BRACKETS), items) > items:
        raise MalformedRequestError(413, f"more than {items} items; accepted: at most {items} a request")


def _objects(brackets: bytes, most: int) -> int:
    """Number of objects opened two levels deep, counted up to most + 1."""
    depth = number = 0
    for sign in brackets:
        if sign in b"{[":
            number += depth == 2 and sign == 123
            depth += 1
        else:
            depth -= 1
        if number > most:
            break
    return number


def unpack(file: bytes) -> tuple[int, int, bytes]:
    """(width, height, the file reduced to its header, data and end) of a PNG of 8-bit RGB.

    Raises MalformedRequestError for anything else, and for a second header, so that the size read here is decoded.
    """
    if file[:16] != PNG + b"\0\0\0\rIHDR" or len(file) < 33 or file[24:26] != b"\x08\x02":
        raise MalformedRequestError(422, "a picture that is no PNG of 8 bit RGB")
    width, height = struct.unpack_from(">II", file, 16)
    kept, at, kind = [PNG], 8, b""
    while kind != b"IEND":
        if at + 12 > len(file):
            raise MalformedRequestError(422, "a damaged PNG (it has no end)")
        length, kind = struct.unpack_from(">I4s", file, at)
        if kind == b"IHDR" and at > 8:
            raise MalformedRequestError(422, "a PNG with a second head")
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(file[at : at + 12 + length])
        at += 12 + length
    if at > len(file):
        raise MalformedRequestError(422, "a damaged PNG (it has no end)")
    return width, height, b"".join(kept)
