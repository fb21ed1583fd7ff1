"""Tables of images and captions: CSV, JSON lines, Parquet, Hugging Face datasets on the disk.

Their purpose is `triptych data pack`. Training can read them directly, but a large data set should
not be held in memory as a table.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from triptych.data_modules.batching.clean_text import captions_of
from triptych.data_modules.sources.base import BadSample, DataSource, ImageRole
from triptych.data_modules.sources.safe_read import MAX_IMAGE_BYTES, read_inside
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.listing.folders import files_of
from triptych.utils.records import read_table

IMAGE_COLUMNS = ("image", "picture", "file_name", "image_path", "path", "img", "jpg", "png")
CAPTION_COLUMNS = ("caption", "text", "txt", "prompt", "description")
MISSING_PACKAGE = (
    "needs the package {}, which is not installed; run `pip install 'triptych[data]'`."
)


class Table(DataSource):
    """Rows with an image, or the path of one, and a caption.

    Keys are the numbers of the rows.

    Args:
        path: path of the table.
        images: folder that image paths are relative to; None is the folder of the table.
        image_column, caption_column: column names; None takes the first of the usual names.

    Raises:
        UserError: the table does not exist, or has no such column.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        *,
        image_column: str | None = None,
        caption_column: str | None = None,
    ) -> None:
        self.path, self.name = Path(path), str(path)
        self.images = Path(images) if images else self.path.parent
        self.image_column, self.caption_column = image_column, caption_column

    @abstractmethod
    def row(self, number: int) -> dict[str, Any]:
        """Column -> value; an image is a path, bytes, or {"bytes": ..., "path": ...}."""

    def key(self, number: int) -> str:
        return f"{number:09d}"

    def caption(self, number: int) -> str:
        return self.captions(number)[0]

    def captions(self, number: int) -> list[str]:
        return captions_of(self.row(number)[self.caption_column], self.key(number))

    def image_bytes(self, number: int, role: ImageRole = "image") -> bytes:
        if role != "image":
            raise BadSample(self.key(number), f"no {role}")
        value = self.row(number)[self.image_column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and len(value) <= MAX_IMAGE_BYTES:
            return value
        if isinstance(value, bytes):
            raise BadSample(self.key(number), f"{role} is too large", f"{len(value):,} bytes")
        return read_inside(self.images, value, self.key(number), role, MAX_IMAGE_BYTES)

    def _resolve_columns(self, columns: Iterable[str]) -> None:
        """Resolve the names of the image and the caption column."""
        columns = list(columns)
        self.image_column = self._column(
            columns, self.image_column, IMAGE_COLUMNS, "images", "--image-column"
        )
        self.caption_column = self._column(
            columns, self.caption_column, CAPTION_COLUMNS, "captions", "--caption-column"
        )

    def _column(
        self, columns: list[str], name: str | None, usual: tuple[str, ...], label: str, flag: str
    ) -> str:
        candidates = [name] if name else usual
        column = next((each for each in candidates if each in columns), None)
        if column is None:
            missing = f"no column {name!r}" if name else f"no column of {label} by a usual name"
            raise UserError(
                f"{self.path} has {missing}; name one of {', '.join(columns) or 'none'} ({flag})."
            )
        return column


class TextTable(Table):
    """A CSV with a header line, or JSON lines, held in memory.

    An unreadable row is a bad sample; it does not affect the others.
    """

    def open(self) -> TextTable:
        if hasattr(self, "_rows"):
            return self
        names: dict[str, None] = {}
        rows: list[dict[str, Any] | str] = []
        for row in read_table(self.path):
            if isinstance(row, dict):
                names |= dict.fromkeys(row)
            rows.append(row)
        if not names:
            raise UserError(f"the table {self.path} has no rows with named columns.")
        self._resolve_columns(names)
        columns = (self.image_column, self.caption_column)
        self._rows = [
            row if isinstance(row, str) else {name: row.get(name) for name in columns}
            for row in rows
        ]
        return self

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> dict[str, Any]:
        row = self._rows[number]
        if isinstance(row, str):
            raise BadSample(self.key(number), row)
        return row


class ParquetTable(Table):
    """Parquet files, read one row group at a time."""

    def open(self) -> ParquetTable:
        if hasattr(self, "_groups"):
            return self
        parquet = _import_package("pyarrow.parquet", "pyarrow", self.path)
        if self.path.is_dir():
            files = [self.path / name for name in files_of(self.path, ".parquet")]
        else:
            files = [self.path]
        self._groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        for number, path in enumerate(files):
            open_regular(path).close()
            try:
                file = parquet.ParquetFile(path)
            except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
                raise UserError(f"the Parquet file {path} cannot be read: {error}.") from error
            with file:
                names = file.schema_arrow.names
                if number == 0:
                    self._resolve_columns(names)
                for name in (self.image_column, self.caption_column):
                    if name not in names:
                        raise UserError(
                            f"the Parquet file {path} has no column {name!r}, which {files[0]} "
                            "has; move it away, or pack it by itself."
                        )
                for group in range(file.num_row_groups):
                    self._groups.append((path, group))
                    sizes.append(file.metadata.row_group(group).num_rows)
        self._ends = list(accumulate(sizes))
        if not self._ends or not self._ends[-1]:
            raise UserError(f"the Parquet files in {self.path} hold no rows.")
        self._read: tuple[int, list[dict] | str] = (-1, [])
        return self

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_read": (-1, [])}

    def row(self, number: int) -> dict[str, Any]:
        group = bisect_right(self._ends, number)
        if self._read[0] != group:
            self._read = group, self._rows_of(*self._groups[group])
        rows = self._read[1]
        if isinstance(rows, str):
            raise BadSample(self.key(number), "rows are damaged", rows)
        return rows[number - (self._ends[group - 1] if group else 0)]

    def _rows_of(self, path: Path, group: int) -> list[dict[str, Any]] | str:
        """The rows of a row group, or its problem."""
        from pyarrow import ArrowException, parquet

        columns = [self.image_column, self.caption_column]
        try:
            with parquet.ParquetFile(path) as file:
                table = file.read_row_group(group, columns)
            values = [_values(table.column(name)) for name in columns]
        except (OSError, ValueError, ArrowException) as error:
            return str(error)
        return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


class HuggingFaceTable(Table):
    """A data set that `datasets` saved to the disk (`save_to_disk`); nothing is downloaded.

    Args:
        path: saved folder.
        images: folder that image paths are relative to; None is the saved folder's parent.
        split: split of a DatasetDict; None takes "train", or the only one.
        **columns: column names, see `Table`.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path | None = None,
        *,
        split: str | None = None,
        **columns: Any,
    ) -> None:
        super().__init__(path, images, **columns)
        self.split = split

    def open(self) -> HuggingFaceTable:
        if hasattr(self, "_data"):
            return self
        datasets = _import_package("datasets", "datasets", self.path)
        for file in self.path.rglob("*"):
            if not file.is_dir():
                open_regular(file).close()
        try:
            data = datasets.load_from_disk(str(self.path))
        except Exception as error:  # a damaged state.json raises errors of many types
            raise UserError(f"the data set in {self.path} cannot be read: {error!r}.") from error
        if isinstance(data, dict):
            split = self.split or (
                "train" if "train" in data or len(data) != 1 else next(iter(data))
            )
            if split not in data:
                raise UserError(
                    f"the data set in {self.path} has no split {split!r}; "
                    f"choose one of {', '.join(data)} (--split)."
                )
            data = data[split]
        self._resolve_columns(data.column_names)
        data = data.select_columns([self.image_column, self.caption_column])
        if isinstance(data.features[self.image_column], datasets.Image):
            # encoded files, not decoded images
            data = data.cast_column(self.image_column, datasets.Image(decode=False))
        self._data = data
        return self

    def __len__(self) -> int:
        return len(self._data)

    def row(self, number: int) -> dict[str, Any]:
        from pyarrow import ArrowException

        try:
            return self._data[number]
        except (OSError, ValueError, ArrowException) as error:  # invalid UTF-8, for one
            raise BadSample(self.key(number), "row cannot be read", str(error)) from error


def _values(column: Any) -> list[Any]:
    """Convert an Arrow column to Python values; bytes that are not UTF-8 become surrogates.

    Arrow does not validate text, and one invalid text would make Python refuse all rows.
    """
    import pyarrow as arrow

    if arrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    plain = _without_text(column.type)
    if plain == column.type:
        return column.to_pylist()
    return [_with_text(value, column.type) for value in column.cast(plain).to_pylist()]


def _without_text(kind: Any) -> Any:
    """The Arrow type with text replaced by bytes."""
    import pyarrow as arrow

    if arrow.types.is_struct(kind):
        return arrow.struct([field.with_type(_without_text(field.type)) for field in kind])
    if arrow.types.is_list(kind) or arrow.types.is_large_list(kind):
        return arrow.large_list(_without_text(kind.value_type))
    if arrow.types.is_large_string(kind):
        return arrow.large_binary()
    text = arrow.types.is_string(kind) or arrow.types.is_string_view(kind)
    return arrow.binary() if text else kind


def _with_text(value: Any, kind: Any) -> Any:
    """Convert a value of type `_without_text(kind)` to `kind`."""
    if isinstance(value, dict):
        return {field.name: _with_text(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_with_text(each, kind.value_type) for each in value]
    if isinstance(value, bytes) and _without_text(kind) != kind:
        return value.decode("utf-8", "surrogateescape")
    return value


def _import_package(module: str, package: str, path: Path) -> Any:
    """Import an optional package.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{path} {MISSING_PACKAGE.format(package)}") from error


def is_saved_dataset(path: Path) -> bool:
    """Whether `datasets` saved this folder."""
    return any((path / name).exists() for name in ("state.json", "dataset_dict.json"))
