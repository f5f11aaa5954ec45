"""Bytes and counts as a person says them."""


def size_text(number: float) -> str:
    """Bytes in GiB, or MiB where they are few."""
    return f"{number / 1024**3:.1f} GiB" if number >= 1024**3 / 10 else f"{number / 1024**2:.1f} MiB"


def count_text(number: float) -> str:
    """A count with three digits and its scale: 11.9 B, 2.24 B, 18.7 M, 90.1 K."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            value = number / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{number:.0f}"
