"""DataModules. A new data format is a subclass of `DataSource`, here or in your own folder.

    base            BaseDataModule, the common part
    mixed           MixedDataModule: several data sets by weight
    dataset_config  DatasetConfig: one data set of a mixture
    webdataset      ShardDataModule: WebDataset shards
    prompts         PromptDataModule: prompts whose images a reward scores
    shapes          ShapesDataModule and EditsDataModule: the shapes world
    sources         data sets as samples by number: WebDataset, folders, LLaVA files, tables
    shards          index of a WebDataset shard
    sampling        order of samples: mixing, epochs, length buckets
    batching        samples to a Batch
    features        cached image features
    streaming       StreamDataModule: shards that cannot be seeked
    tools           data pack and data inspect
    decode          encoded images to uint8 squares
    parallel        parallel map over all cores
    previews        samples for callbacks that show a data set

The pipeline from a shard to a batch, step by step:

     1. shards.index.ShardIndex                     places of the samples in each shard
     2. sources.webdataset.ShardFolder              samples by number
     3. sampling.mixing.Mixture                     data set of each position, by weight
     4. sampling.epoch_shuffle.EpochShuffle         sample at each place of an epoch
     5. sampling.epochs.DistinctEpochs              no repeats where a batch spans two epochs
     6. sampling.length_buckets.LengthBuckets       positions of similar caption length
     7. sampling.batch_sampler.GlobalBatchSampler   3 to 6 joined: samples of a step
     8. sampling.step_dataset.StepDataset           share of this rank and micro-batch
     9. batching.tasks.TaskDataset                  prompt and labels of a sample
    10. decode.Decoder                              images as uint8 squares
    11. batching.collate.Collator                   9 and 10 joined to a `Batch`
    12. batching.accumulation.AccumulationLoader    micro-batches of a step
"""

if __name__ != "triptych.data_modules":
    raise ImportError(f"import this folder as 'triptych.data_modules', not as {__name__!r}")

from triptych.data_modules.base import BaseDataModule
from triptych.data_modules.batching.accumulation import AccumulationLoader
from triptych.data_modules.batching.bad_samples import BadSampleCounter
from triptych.data_modules.batching.collate import Collator
from triptych.data_modules.batching.tasks import TaskDataset
from triptych.data_modules.dataset_config import DatasetConfig
from triptych.data_modules.decode import Decoder
from triptych.data_modules.mixed import MixedDataModule
from triptych.data_modules.prompts import PromptDataModule
from triptych.data_modules.shapes import EditsDataModule, ShapesDataModule
from triptych.data_modules.sources.base import BadSample, DataSource, Sample
from triptych.data_modules.sources.image_folder import ImageFolder
from triptych.data_modules.sources.llava import ConversationFile
from triptych.data_modules.sources.prompts import PromptFile, ShapesPrompts
from triptych.data_modules.sources.webdataset import ShardFolder
from triptych.data_modules.webdataset import ShardDataModule

__all__ = [
    "AccumulationLoader",
    "BadSample",
    "BadSampleCounter",
    "BaseDataModule",
    "Collator",
    "ConversationFile",
    "DataSource",
    "DatasetConfig",
    "Decoder",
    "EditsDataModule",
    "ImageFolder",
    "MixedDataModule",
    "PromptDataModule",
    "PromptFile",
    "Sample",
    "ShapesDataModule",
    "ShapesPrompts",
    "ShardDataModule",
    "ShardFolder",
    "StreamDataModule",
    "TaskDataset",
]


def __getattr__(name: str):
    if name == "StreamDataModule":  # its webdataset opens no local files once imported
        from triptych.data_modules.streaming.datamodule import StreamDataModule

        return StreamDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
