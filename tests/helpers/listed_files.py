"""Files of folders and shards that a lister must find or skip."""

import io

from PIL import Image


def image(number=0, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 10, 200)).save(buffer, kind)
    return buffer.getvalue()


CLUTTER = [
    ".hidden.jpg",
    "._a.jpg",
    ".DS_Store",
    ".ipynb_checkpoints/a-checkpoint.jpg",
    "sub/.git/a.jpg",
    "__MACOSX/a.jpg",
    "__MACOSX/._a.jpg",
    "sub/@eaDir/a.jpg",
    "$RECYCLE.BIN/a.jpg",
    "Thumbs.db",
    "desktop.ini",
]


PAIR = [("k.jpg", image(kind="JPEG")), ("k.txt", b"k")]
