"""Sources whose samples are the files of one key, in a folder or a shard, with fixed roles."""

from __future__ import annotations

from abc import abstractmethod

from triptych.data_modules.batching.clean_text import captions_of
from triptych.data_modules.sources.base import BadSample, DataSource, ImageRole
from triptych.utils.records import parse


class MemberSource(DataSource):
    """Samples of an image, a caption, JSON, and the source image of an edit, see `listing.names`.

    A subclass reads files by role; this class interprets them.
    """

    max_image_bytes: int
    max_text_bytes: int

    @abstractmethod
    def _read(self, number: int, role: str, max_bytes: int) -> bytes | None:
        """Read the file of a role; None if the sample has none.

        Args:
            number: number of the sample.
            role: role of the file in `names.KINDS`: "image", "source", "txt" or "json".
            max_bytes: size limit; a larger file is not read.

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
        """Content of KEY.json; {} if there is none."""
        text = self._read(number, "json", self.max_text_bytes)
        if text is None:
            return {}
        try:
            metadata = parse(text)
        except ValueError as error:
            raise BadSample(self.key(number), "its .json is not JSON", str(error)) from error
        if not isinstance(metadata, dict):
            raise BadSample(self.key(number), "its .json is not a JSON object")
        return metadata

    def image_bytes(self, number: int, role: ImageRole = "image") -> bytes:
        image = self._read(number, role, self.max_image_bytes)
        if image is None:
            raise BadSample(self.key(number), f"no {role}")
        return image
