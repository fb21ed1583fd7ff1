"""Conversation files in the layout of LLaVA, and edits, with the paths of their images.

Either one JSON list, or JSONL with one record per line:

    {"image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                              {"from": "gpt", "value": "A circle."}]}
    {"conversations": [...]}                                                   without an image
    {"image": "1.jpg", "caption": "a red circle"}                              or "text"
    {"source": "1.jpg", "instruction": "make it blue", "target": "2.jpg"}      an edit
    {"messages": [{"role": "user", "content": "draw a circle"},                interleaved
                  {"role": "assistant", "content": [{"image": "1.jpg"}]}]}
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from triptych.data_modules.batching.clean_text import captions_of
from triptych.data_modules.sources.base import CAPTION_KEYS, BadSample, DataSource, ImageRole
from triptych.data_modules.sources.jsonl_index import JsonlIndex
from triptych.data_modules.sources.safe_read import MAX_IMAGE_BYTES, read_inside
from triptych.utils.captions import text_bytes
from triptych.utils.documents import read_bytes
from triptych.utils.errors import UserError
from triptych.utils.records import NO_JSON, NO_OBJECT, parse
from triptych.utils.text import refuse_wide

IMAGE_MARK = "<image>"  # position of the image in a question; ours always opens the first
MAX_LIST_BYTES = 4 << 30  # of a .json, which is held in memory
USER, ASSISTANT = ("human", "user"), ("gpt", "assistant")


class ConversationFile(DataSource):
    """The records of a conversation file; keys are NAME-NUMBER, counted from 0.

    A JSONL file is not held in memory, see `JsonlIndex`.

    Args:
        path: .json file with a list, or .jsonl file.
        images: folder that the image paths are relative to; null is the folder of the file.
        max_image_bytes: size limit of images; a larger one is a bad sample, and is not read.

    Raises:
        UserError: the file does not exist, or holds no records.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        *,
        max_image_bytes: int = MAX_IMAGE_BYTES,
    ) -> None:
        self.path = Path(path)
        self.images = Path(images) if images is not None else self.path.parent
        self.name = str(path)
        self.max_image_bytes = max_image_bytes
        self._records: JsonlIndex | list | None = None
        self._last: tuple[int, dict] = (-1, {})

    def open(self) -> ConversationFile:
        if self._records is None:
            if not self.images.is_dir():
                raise UserError(
                    f"the folder of images {self.images} of {self.path} does not exist."
                )
            listed = self.path.suffix.lower() == ".json"
            records = _read_list(self.path) if listed else JsonlIndex(self.path, record_bytes)
            if not len(records):
                raise UserError(f"the conversation file {self.path} is empty.")
            self._records = records
        return self

    def __len__(self) -> int:
        return len(self._records)

    def key(self, number: int) -> str:
        return f"{self.path.stem}-{number:07d}"

    def caption(self, number: int) -> str:
        return self.captions(number)[0]

    def captions(self, number: int) -> list[str]:
        record = self._record(number)
        for field in CAPTION_KEYS:
            if isinstance(record.get(field), str | list):
                return captions_of(record[field], self.key(number))
        raise BadSample(self.key(number), "no caption", f"none of {', '.join(CAPTION_KEYS)}")

    def metadata(self, number: int) -> dict:
        """The record, with its "conversations" as "conversation": [(question, answer), ...]."""
        record = self._record(number)
        if "conversations" not in record:
            return record
        has_image = self.has_image(number, "image")
        turns = turns_of(record["conversations"], self.key(number), has_image)
        return {**record, "conversation": turns}

    def has_image(self, number: int, role: ImageRole) -> bool:
        return bool(image_path(self._record(number), role, self.key(number)))

    def image_bytes(self, number: int, role: ImageRole = "image") -> bytes:
        key = self.key(number)
        path = image_path(self._record(number), role, key)
        if not path:
            raise BadSample(key, f"no {role}")
        return read_inside(self.images, path, key, role, self.max_image_bytes)

    def named_image_bytes(self, number: int, name: str) -> bytes:
        """The image at a path in the folder of images."""
        label = "image of a message"
        return read_inside(self.images, name, self.key(number), label, self.max_image_bytes)

    def caption_lengths(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [n], bytes of all the text of each record."""
        if isinstance(self._records, JsonlIndex):
            return np.asarray(self._records.sizes[np.asarray(numbers)])
        return np.array([record_bytes(self._records[number]) for number in numbers], np.int64)

    def _record(self, number: int) -> dict:
        if self._last[0] != number:  # a task reads it several times in a row
            try:
                record = self._records[number]
            except (OSError, ValueError) as error:
                raise BadSample(self.key(number), NO_JSON, str(error)) from error
            if not isinstance(record, dict):
                raise BadSample(self.key(number), NO_OBJECT)
            self._last = number, record
        return self._last[1]


def image_path(record: dict, role: ImageRole, key: str) -> object:
    """Path of an image in a record, unchecked; None if it has none.

    Raises:
        BadSample: there is more than one.
    """
    path = record.get("source") if role == "source" else record.get("image", record.get("target"))
    if isinstance(path, list):
        if len(path) > 1:
            raise BadSample(key, "more than one image", f"{len(path)} of them")
        path = path[0] if path else None
    return path


def turns_of(conversations: object, key: str, has_image: bool) -> list[tuple[str, str]]:
    """(question, answer) pairs of LLaVA's list of messages; a leading system message is dropped.

    Raises:
        BadSample: questions and answers do not alternate, or an image is missing.
    """
    try:
        messages = [(message["from"], message["value"]) for message in conversations]
        if messages and messages[0][0] == "system":
            messages = messages[1:]
        users, assistants = messages[::2], messages[1::2]
        alternate = len(users) == len(assistants) and bool(users)
        alternate = alternate and all(sender in USER for sender, _ in users)
        alternate = alternate and all(sender in ASSISTANT for sender, _ in assistants)
        texts = [text for _, text in users + assistants]
    except (TypeError, KeyError) as error:
        raise BadSample(key, "conversation is no list of messages", repr(error)) from error
    if not alternate or not all(isinstance(text, str) for text in texts):
        raise BadSample(key, "questions and answers do not take turns")
    if not has_image and any(IMAGE_MARK in text for _, text in users):
        raise BadSample(key, "conversation shows an image that is not there")
    questions = [text.replace(IMAGE_MARK, "").strip() for _, text in users]
    return list(zip(questions, (text for _, text in assistants), strict=True))


def record_bytes(record: object) -> int:
    """Bytes of all the text of a record; 0 for an unusable one."""
    if not isinstance(record, dict):
        return 0
    texts = [record.get(field) for field in CAPTION_KEYS]
    conversations = record.get("conversations")
    if isinstance(conversations, list):
        texts += [turn.get("value") for turn in conversations if isinstance(turn, dict)]
    messages = record.get("messages")
    if isinstance(messages, list):
        texts += [each.get("content") for each in messages if isinstance(each, dict)]
    return text_bytes(texts)


def _read_list(path: Path) -> list:
    content = read_bytes(path, MAX_LIST_BYTES)
    refuse_wide(content, path)
    try:
        records = parse(content)
    except ValueError as error:
        raise UserError(f"{path} is no JSON that can be read: {error}.") from error
    if not isinstance(records, list):
        raise UserError(f"{path} is no JSON list of records; give one record a line as .jsonl.")
    return records
