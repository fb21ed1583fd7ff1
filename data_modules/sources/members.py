"""Sources whose samples are files of one key, in a folder or a shard, with fixed roles."""

from __future__ import annotations

from abc import abstractmethod

from triptych.data_modules.batching.clean_text import captions_of
from triptych.data_modules.sources.base import BadSample, DataSource, ImageRole
from triptych.utils.records import parse


class MemberSource(DataSource):
    """Samples of an image, a caption, JSON, and the source of an edit, see `listing.names`.

    A subclass reads them by role; their meaning is decided here.
    """

    max_image_bytes: int
    max_text_bytes: int

    @abstractmethod
    def _read(self, number: int, role: str, most: int) -> bytes | None:
        """The file of a role, None where a sample has none.

        Args:
            role: a role of `names.KINDS`: "image", "source", "txt" or "json".
            most: size limit in bytes; a larger file is not read.

        Raises:
            BadSample: it is larger, or cannot be read.
        """

    def caption(self, number: int) -> str:
        return self.captions(number)[0]

    def captions(self, number: int) -> list[str]:
        """KEY.txt, else the "caption" of KEY.json, which may be a list of several."""
        caption: object = self._read(number, "txt", self.max_text_bytes)
        if caption is None:
            caption = self.metadata(number).get("caption")
        if caption is None:
            raise BadSample(self.key(number), "no caption", "neither a .txt nor a JSON 'caption'")
        return captions_of(caption, self.key(number))

    def metadata(self, number: int) -> dict:
        """KEY.json, {} where there is none."""
        text = self._read(number, "json", self.max_text_bytes)
        if text is None:
            return {}
        try:
            metadata = parse(text)
        except ValueError as error:
            raise BadSample(self.key(number), "its .json is no JSON", str(error)) from error
        if not isinstance(metadata, dict):
            raise BadSample(self.key(number), "its .json is no JSON object")
        return metadata

    def image_bytes(self, number: int, role: ImageRole = "image") -> bytes:
        image = self._read(number, role, self.max_image_bytes)
        if image is None:
            raise BadSample(self.key(number), f"no {role}")
        return image
