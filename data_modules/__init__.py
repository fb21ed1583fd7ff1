"""DataModules. A new data format is a subclass of `DataSource`, here or in your own folder.

    mixed       MixedDataModule: several data sets by weight
    webdataset  ShardDataModule: WebDataset shards
    shapes      ShapesDataModule and EditsDataModule: the shapes world
    sources     data sets as samples by number: WebDataset, folders, LLaVA files, tables
    shards      index of a WebDataset shard
    sampling    order of samples: mixing, epochs, length buckets
    batching    samples to a Batch
    features    cached image features
    streaming   StreamDataModule: shards that cannot be seeked
    tools       data pack and data inspect
    decode      encoded images to uint8 squares
    parallel    work over all cores, results in order
    previews    samples for callbacks that show a data set

From a step to its batch: sampling.batch_sampler names the samples, a source reads them,
batching.tasks makes prompts, decode makes pixels, batching.collate joins them.
"""

if __name__ != "triptych.data_modules":
    raise ImportError(f"import this folder as 'triptych.data_modules', not as {__name__!r}")

from triptych.data_modules.batching.accumulation import AccumulationLoader
from triptych.data_modules.batching.bad_samples import BadSampleCounter
from triptych.data_modules.batching.collate import Collator
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.decode import Decoder
from triptych.data_modules.mixed import DatasetConfig, MixedDataModule
from triptych.data_modules.shapes import EditsDataModule, ShapesDataModule
from triptych.data_modules.sources.base import BadSample, DataSource, Sample
from triptych.data_modules.sources.image_folder import ImageFolder
from triptych.data_modules.sources.llava import ConversationFile
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.data_modules.webdataset import ShardDataModule

__all__ = [
    "AccumulationLoader",
    "BadSample",
    "BadSampleCounter",
    "Collator",
    "ConversationFile",
    "Decoder",
    "EditsDataModule",
    "DatasetConfig",
    "MixedDataModule",
    "ImageFolder",
    "TaskDataset",
    "Sample",
    "ShapesDataModule",
    "ShardDataModule",
    "ShardFolder",
    "DataSource",
    "StreamDataModule",
]


def __getattr__(name: str):
    if name == "StreamDataModule":  # see its file for why not before it is used
        from triptych.data_modules.streaming.datamodule import StreamDataModule

        return StreamDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
