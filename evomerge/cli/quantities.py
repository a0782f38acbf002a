"""Seconds and bytes as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Returns seconds as people read them: ``42 s``, ``3 min 10 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(nbytes: float) -> str:
    """Returns bytes as people read them, in powers of ten: ``269 MB``."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB" if nbytes < 1000 else f"{nbytes / 1000:.1f} TB"
