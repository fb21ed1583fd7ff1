"""Where data comes from. A new data set is a new file here, or a subclass in your own folder."""

if __name__ != "triptych.data_modules":
    raise ImportError(f"import this folder as 'triptych.data_modules', not as {__name__!r}")

from triptych.data_modules.batching.accumulation import AccumulationLoader
from triptych.data_modules.batching.bad_samples import BadSamples
from triptych.data_modules.batching.collate import BatchBuilder
from triptych.data_modules.batching.tasks import Reading
from triptych.data_modules.decode import Decoder
from triptych.data_modules.mixed import Ingredient, MixedDataModule
from triptych.data_modules.shapes import EditsDataModule, ShapesDataModule
from triptych.data_modules.sources.base import BadSample, Sample, Source
from triptych.data_modules.sources.image_folder import PictureFolder
from triptych.data_modules.sources.llava import ConversationFile
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.data_modules.webdataset import ShardDataModule

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
        from triptych.data_modules.streaming.datamodule import StreamDataModule

        return StreamDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
