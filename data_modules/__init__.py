"""Where data comes from. A new data set is a new file here, or a subclass in your own folder."""

if __name__ != "triptych.data_modules":
    raise ImportError(f"import this folder as 'triptych.data_modules', not as {__name__!r}")

from .accumulation import AccumulationLoader
from .bad_samples import BadSamples
from .batches import BatchBuilder
from .conversations import ConversationFile
from .decode import Decoder
from .edits import EditsDataModule
from .module import Ingredient, MixedDataModule, ShapesDataModule, ShardDataModule
from .pictures_folder import PictureFolder
from .shards import ShardFolder
from .source import BadSample, Sample, Source
from .tasks import Reading

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
        from .stream import StreamDataModule

        return StreamDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
