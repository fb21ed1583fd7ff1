"""Role of a file by its name: image, source of an edit, caption or JSON.

    KEY.jpg|jpeg|png|webp|bmp|gif   the image (or KEY.target.jpg, ...)
    KEY.source.jpg                  the image before an edit
    KEY.txt                         the caption, or the instruction of an edit
    KEY.json                        everything else; its "caption" replaces a missing KEY.txt
    KEY.0.jpg, KEY.1.jpg, ...       the images that "messages" in KEY.json name, in shards only

Suffixes are case-insensitive. In a tar shard, KEY ends at the first dot of the name, as in
webdataset; in a folder, at the suffix: "photo v1.0.jpg" is the image of "photo v1.0".
"""

from __future__ import annotations

from collections.abc import Collection

IMAGE_KINDS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
IMAGE_SUFFIXES = tuple(f".{kind}" for kind in IMAGE_KINDS)
OTHER_SUFFIXES = (
    *(".tif", ".tiff", ".jfif", ".jpe", ".jp2", ".jxl", ".avif", ".heic", ".heif", ".svg"),
    *(".ico", ".ppm", ".pgm", ".pbm", ".tga", ".psd", ".dng"),
)
"""Suffixes of unsupported images, which are reported."""
KINDS = {
    "image": (*(f"target.{kind}" for kind in IMAGE_KINDS), *IMAGE_KINDS),
    "source": tuple(f"source.{kind}" for kind in IMAGE_KINDS),
    "txt": ("txt",),
    "json": ("json",),
}
"""Kinds of files for each role, in order of preference; other files are ignored."""
FIRST_IMAGE = tuple(f"0.{kind}" for kind in IMAGE_KINDS)
"""Kinds of the first image of a conversation in a shard."""
RECORDED = frozenset(kind for kinds in KINDS.values() for kind in kinds)
_LONGEST_FIRST = sorted(RECORDED, key=len, reverse=True)

# files of operating systems; names that begin with a dot are hidden anyway
CLUTTER = frozenset(
    (b"__macosx", b"@eadir", b"thumbs.db", b"desktop.ini", b"$recycle.bin", b"lost+found")
    + (b"system volume information",)
)


def is_hidden(name: bytes) -> bool:
    """Whether a path is hidden, or in a hidden folder: .ipynb_checkpoints/a.jpg, ._a.jpg."""
    return any(
        (part.startswith(b".") and part not in (b".", b"..")) or part.lower() in CLUTTER
        for part in name.split(b"/")
    )


def split_at_first_dot(name: bytes) -> tuple[bytes, str]:
    """Split b"folder/KEY.source.jpg" into (b"folder/KEY", "source.jpg"), like webdataset.

    The key is empty for a name without a dot, or with a dot at its beginning.
    """
    folder, slash, file = name.rpartition(b"/")
    stem, dot, kind = file.partition(b".")
    if not (stem and dot):
        return b"", ""
    return folder + slash + stem, kind.decode("ascii", "replace").lower()


def split_at_kind(name: bytes) -> tuple[bytes, str]:
    """Split b"folder/photo v1.0.jpg" into (b"folder/photo v1.0", "jpg"), by the longest kind.

    The key is empty for a name without such a suffix, or with nothing before it.
    """
    folder, slash, file = name.rpartition(b"/")
    end = file.lower()
    kind = next((kind for kind in _LONGEST_FIRST if end.endswith(b"." + kind.encode())), "")
    stem = file[: -len(kind) - 1] if kind else b""
    return (folder + slash + stem, kind) if stem else (b"", "")


def kind_for(role: str, kinds: Collection[str]) -> str | None:
    """The preferred one of `kinds` for a role, or None."""
    return next((kind for kind in KINDS[role] if kind in kinds), None)
