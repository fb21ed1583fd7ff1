"""Where data comes from. A new data set is a new file here, or a subclass in your own folder."""

if __name__ != "triptych.data_modules":
    raise ImportError(f"import this folder as 'triptych.data_modules', not as {__name__!r}")

from triptych.data_modules.accumulation import AccumulationLoader
from triptych.data_modules.bad_samples import BadSamples
from triptych.data_modules.batches import BatchBuilder
from triptych.data_modules.conversations import ConversationFile
from triptych.data_modules.decode import Decoder
from triptych.data_modules.edits import EditsDataModule
from triptych.data_modules.module import (
    Ingredient,
    MixedDataModule,
    ShapesDataModule,
    ShardDataModule,
)
from triptych.data_modules.pictures_folder import PictureFolder
from triptych.data_modules.shards import ShardFolder
from triptych.data_modules.source import BadSample, Sample, Source
from triptych.data_modules.tasks import Reading

__all__ = [
    "AccumulationLoader",
    "BadSample",
    "BadSamples",
    "BatchBuilder",
    "ConversationFile",
    "Decoder",
    "EditsDataModule",
    "Ingredient",
    "MixedDataModule",
    "PictureFolder",
    "Reading",
    "Sample",
    "ShapesDataModule",
    "ShardDataModule",
    "ShardFolder",
    "Source",
    "StreamDataModule",
]


def __getattr__(name: str):
    if name == "StreamDataModule":  # see its file for why not before it is used
        from triptych.data_modules.stream import StreamDataModule

        return StreamDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
