"""Sources whose samples are files of one key, in a folder or a shard: one rule of what each is."""

from __future__ import annotations

from abc import abstractmethod

from triptych.listing.captions import captions_in, facts_in

from .source import BadSample, ImageRole, Source
from .texts import blamed_on


class MemberSource(Source):
    """Samples of an image, a caption, JSON, and the source of an edit, see `listing.names`.

    A subclass reads them by role; what they mean is decided here.
    """

    max_picture_bytes: int
    max_text_bytes: int

    @abstractmethod
    def _read(self, number: int, role: str, most: int) -> bytes | None:
        """The file of a role, None where a sample has none.

        Args:
            role: of `names.KINDS`: "picture", "source", "txt" or "json".
            most: bytes; a larger file is not read.

        Raises:
            BadSample: it is larger, or cannot be read.
        """

    def caption(self, number: int) -> str:
        return self.captions(number)[0]

    def captions(self, number: int) -> list[str]:
        """By the rule of `listing.captions`."""
        key = self.key(number)
        with blamed_on(key):
            found = captions_in(lambda role: self._read(number, role, self.max_text_bytes))
        if not found:
            raise BadSample(key, "no caption", "neither a .txt nor a JSON 'caption'")
        return found

    def facts(self, number: int) -> dict:
        """KEY.json, {} where there is none."""
        with blamed_on(self.key(number)):
            return facts_in(self._read(number, "json", self.max_text_bytes))

    def image(self, number: int, role: ImageRole = "picture") -> bytes:
        picture = self._read(number, role, self.max_picture_bytes)
        if picture is None:
            raise BadSample(self.key(number), f"no {role}")
        return picture
