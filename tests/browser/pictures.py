"""Screenshots with 256 colours, which is all that a page has but for the edges of its letters: a third of the size."""

from __future__ import annotations

import struct
import zlib
from base64 import b64decode, b64encode
from typing import Any

import numpy as np

_DECODE = """async (text) => {
  const image = new Image(); image.src = "data:image/png;base64," + text; await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height), pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const data = pen.getImageData(0, 0, image.width, image.height).data;
  let out = ""; for (let i = 0; i < data.length; i += 32768) out += String.fromCharCode(...data.subarray(i, i + 32768));
  return [image.width, image.height, btoa(out)];
}"""


def small_png(page: Any, png: bytes) -> bytes:
    """The same picture with a palette. `page` lends its browser, which knows how to read a PNG."""
    blank = page.context.browser.new_page()
    try:
        width, height, text = blank.evaluate(_DECODE, b64encode(png).decode())
    finally:
        blank.close()
    pixels = np.frombuffer(b64decode(text), np.uint8).reshape(-1, 4)[:, :3].astype(np.int64)
    codes, where, counts = np.unique(
        pixels[:, 0] << 16 | pixels[:, 1] << 8 | pixels[:, 2], return_inverse=True, return_counts=True
    )
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    palette = colours[np.argsort(-counts)[:256]]
    nearest = np.concatenate(
        [((part[:, None] - palette[None]) ** 2).sum(axis=2).argmin(axis=1) for part in np.array_split(colours, 64)]
    )
    rows = nearest[where].astype(np.uint8).reshape(height, width)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (
        (b"IHDR", head),
        (b"PLTE", palette.astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
