"""Pictures that a task shows to a model: kept as files' bytes, decoded when a model sees them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Picture:
    """One picture, checked: it can be decoded.

    Attributes:
        data: an image file's bytes, in any format that Pillow reads.
    """

    data: bytes = field(repr=False)

    @property
    def key(self) -> str:
        """A hash of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()

    def opened(self) -> Any:
        """Returns the picture as a PIL image in RGB, with the rotation that its metadata asks for."""
        from PIL import Image, ImageOps

        with Image.open(io.BytesIO(self.data)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")


def pictures_in(value: Any, folder: Path) -> tuple[Picture, ...]:
    """Returns the pictures of a column's value, at least one.

    Args:
        value: an image file's path or bytes, a PIL image, a mapping with ``bytes`` or ``path`` (as data sets on the Hub
            store them), or a list of these.
        folder: where relative paths begin.

    Raises:
        ValueError: the value is something else, or an image cannot be read; the text says which.
    """
    found = tuple(_pictures(value, folder))
    if not found:
        raise ValueError("has no image; every row needs one")
    return found


def _pictures(value: Any, folder: Path) -> Iterator[Picture]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _pictures(one, folder)
        return
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    what = "the image"
    if isinstance(value, str) and value:
        what = value
        try:
            path = folder / value
            if not path.is_file():  # Reading a pipe or a device may never end.
                raise ValueError("no such file")
            value = path.read_bytes()
        except (OSError, ValueError) as fault:
            raise ValueError(f"{what}: cannot be read: {getattr(fault, 'strerror', None) or fault}") from None
    elif hasattr(value, "save") and hasattr(value, "convert"):  # a PIL image
        written = io.BytesIO()
        value.save(written, format="PNG")
        value = written.getvalue()
    if not isinstance(value, bytes) or not value:
        raise ValueError(f"expected an image (a file's path, or its bytes), found {type(value).__name__}")
    picture = Picture(value)
    try:
        picture.opened()
    except Exception as fault:  # of any decoder; also for an image of too many pixels
        raise ValueError(f"{what}: not an image that can be decoded: {fault}") from None
    yield picture
