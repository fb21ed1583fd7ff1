"""Data loading speed against `webdataset` and Hugging Face `datasets`, as ratios.

Drawn JPEGs (gradients and noise, quality 90) of 512, 1024 and 2048 pixels a side become images of
448: one process, one thread, the contestants in turn in every round, medians over the rounds, in
seconds of the processor, so that what else the machine does weighs little.

    loader        our shards over their index, in the order of training, as uint8 (the model
                  normalises on its device)
    webdataset    `webdataset` with pillow and the published transform, as normalised float32
    same decoder  `webdataset` with our decoder
    datasets      a map-style `datasets` set in shuffled order with the published access pattern:
                  the row is asked for five times a sample, and transformed twice

Beside them: cached features against live decoding, the start of a fresh process over 1,000 indexed
shards, and how long and in how much memory a place in 30 million samples is found.

    python benchmarks/data.py --out benchmarks/results/data.json

A ratio above 1 says that ours is faster; over the sizes the smallest is given. The last line is one
line of JSON.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import webdataset
from PIL import Image
from reporting import machine, versions, write_result
from torchvision import transforms

from triptych.data_modules import Collator, Decoder, ShardFolder, TaskDataset
from triptych.data_modules.sampling.batch_sampler import GlobalBatchSampler
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sampling.step_dataset import StepDataset
from triptych.data_modules.shards.index import write_index
from triptych.data_modules.shards.index_format import COLUMNS, IndexContents
from triptych.interfaces import TEXT_TO_IMAGE, Preprocessing

SIDES = {512: 32, 1024: 16, 2048: 8}  # pixels a side -> images of one round
SQUARE = 448  # pixels
BATCH = 8
DRAWN = 32  # different images of each size
FEATURES = (1792, 8, 8)  # of one image, as BLIP3-o has them
SHARDS, SAMPLES = 3000, 10_000  # of the 30 million
# Mean and deviation of the published image encoder's pixels.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PACKAGES = (
    "torch",
    "torchvision",
    "pillow",
    "simplejpeg",
    "webdataset",
    "datasets",
    "pyarrow",
    "numpy",
)
TARGETS = {
    "loader_vs_webdataset": 3.0,
    "loader_vs_webdataset_same_decoder": 1.0,
    "loader_vs_hf_datasets": 8.0,
    "features_vs_live": 20.0,
}
LIMITS = {"startup_s": 2.0, "seek_s": 1.0, "seek_mb": 200.0}


def draw(side: int, number: int) -> bytes:
    """A JPEG with the frequencies of a photograph: gradients, blobs and fine noise."""
    random = np.random.default_rng([side, number])
    image = np.zeros((side, side, 3), np.float32)
    for cells in (4, 16, 64, side // 2):
        noise = random.normal(size=(cells, cells, 3)).clip(-2, 2) * 32 + 128
        layer = Image.fromarray(noise.astype(np.uint8)).resize((side, side), Image.BICUBIC)
        image += (np.asarray(layer, np.float32) - 128) * (1.5 if cells < 64 else 0.4)
    buffer = io.BytesIO()
    Image.fromarray((image + 128).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_shard(path: Path, images: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            for kind, content in (("jpg", image), ("txt", b"a drawn image")):
                info = tarfile.TarInfo(f"{path.stem}_{number:06d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


# --- contestants ----------------------------------------------------------------------------------


def ours(folder: Path) -> Iterator:
    """Our loader, as a DataLoader's worker runs it."""
    source = ShardFolder(folder).open()
    sampler = GlobalBatchSampler([source], Mixture({"drawn": 1.0}), BATCH)
    processor = Preprocessing(tokenizer=None, max_tokens=512, image_size=SQUARE)
    batches = StepDataset(Collator([TaskDataset(source, TEXT_TO_IMAGE)], processor), sampler)
    step = 0
    while True:
        yield batches[step].target_pixels
        step += 1


def published_transform() -> Callable[[Image.Image], torch.Tensor]:
    return transforms.Compose(
        [
            transforms.Resize(SQUARE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SQUARE),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )


def webdataset_samples(folder: Path) -> webdataset.WebDataset:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(16)


def with_pillow(folder: Path) -> Iterator:
    transform = published_transform()

    def decode(sample: dict) -> torch.Tensor:
        return transform(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))

    return iter(webdataset_samples(folder).map(decode).batched(BATCH, collation_fn=torch.stack))


def with_our_decoder(folder: Path) -> Iterator:
    decoder = Decoder()

    def decode(sample: dict) -> torch.Tensor:
        return decoder(sample["jpg"], SQUARE)[0]

    return iter(webdataset_samples(folder).map(decode).batched(BATCH, collation_fn=torch.stack))


def hugging_face(folder: Path, images: list[bytes]) -> Iterator:
    import datasets

    datasets.disable_progress_bars()
    place = folder / "datasets"
    features = {"image": datasets.Image(), "txt": datasets.Value("string")}
    columns = {
        "image": [{"bytes": image, "path": None} for image in images],
        "txt": ["a drawn image"] * len(images),
    }
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.save_to_disk(str(place))
    rows = datasets.load_from_disk(str(place)).shuffle(seed=42)
    transform = published_transform()
    number = 0
    while True:
        batch = []
        for _ in range(BATCH):
            place = number % len(rows)
            row = [rows[place] for _ in range(5)][-1]
            image = row["image"].convert("RGB")
            batch.append([transform(image) for _ in range(2)][-1])
            number += 1
        yield torch.stack(batch)


def in_turn(contestants: dict[str, Iterator], images: int, rounds: int) -> dict[str, float]:
    """Median processor seconds an image of each, after one batch that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for stream in contestants.values():
        next(stream)
    for _ in range(rounds):
        for name, stream in contestants.items():
            started = time.process_time()
            for _ in range(images // BATCH):
                next(stream)
            seconds[name].append((time.process_time() - started) / images)
    return {name: statistics.median(found) for name, found in seconds.items()}


def loaders(work: Path, rounds: int) -> dict[int, dict[str, float]]:
    """Side -> contestant -> seconds an image."""
    found = {}
    for side, in_round in SIDES.items():
        folder = work / str(side)
        folder.mkdir()
        images = [draw(side, number) for number in range(DRAWN)]
        for shard in range(4):
            write_shard(folder / f"{shard:05d}.tar", images[shard::4])
        contestants = {
            "loader": ours(folder),
            "webdataset": with_pillow(folder),
            "same_decoder": with_our_decoder(folder),
            "hf_datasets": hugging_face(folder, images),
        }
        found[side] = in_turn(contestants, in_round, rounds)
        shown = ", ".join(f"{name} {1000 * each:.1f}" for name, each in found[side].items())
        print(f"{side:5} px, ms an image: {shown}", flush=True)
    return found


# --- features, start, seek ------------------------------------------------------------------------


def features_against_live(work: Path, rounds: int) -> dict[str, float]:
    """Seconds an image: cached bf16 features, and decoding at 1024 pixels."""
    from triptych.data_modules.features.feature_shard import (
        SUFFIX,
        FeatureShard,
        FeatureShardWriter,
    )

    folder = work / "1024"
    source = ShardFolder(folder).open()
    keys = [source.key(number) for number in range(len(source))]
    path = work / f"features{SUFFIX}"
    writer = FeatureShardWriter(path, "bf16", FEATURES)
    writer.add(keys, torch.randn(len(keys), *FEATURES))
    writer.close({})
    feature_shard = FeatureShard(path)

    def cached() -> Iterator:
        order = np.random.default_rng(0)
        while True:
            some = order.integers(0, len(keys), BATCH)
            yield torch.stack([feature_shard.get(keys[number]) for number in some])

    return in_turn({"features": cached(), "live": ours(folder)}, 16, rounds)


START = """
import sys, time
from triptych.data_modules import ShardFolder
started = time.perf_counter()
source = ShardFolder(sys.argv[1], index="require").open()
source.caption(len(source) - 1)
print(time.perf_counter() - started)
"""

SEEK = """
import sys, time
from pathlib import Path
from triptych.data_modules import ShardFolder
from triptych.data_modules.sampling.mixing import Mixture
from triptych.data_modules.sampling.batch_sampler import GlobalBatchSampler

def peak():
    (line,) = [s for s in Path("/proc/self/status").read_text().split("\\n") if "VmHWM" in s]
    return int(line.split()[1]) / 1024

Path("/proc/self/clear_refs").write_text("5")
before = peak()
source = ShardFolder(sys.argv[1], index="require").open()
sampler = GlobalBatchSampler([source], Mixture({"large": 1.0}), 512)
slowest = 0.0
for share in (0.0, 0.123, 0.5, 0.987, 2.6):
    started = time.perf_counter()
    positions = sampler.batch(int(share * len(source) / 512))
    _, numbers = sampler.locate(positions)
    keys = [source.key(number) for number in numbers.tolist()]
    slowest = max(slowest, time.perf_counter() - started)
print(slowest, peak() - before)
"""


def measured(script: str, folder: Path) -> list[float]:
    """The numbers that a fresh process prints."""
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def start(work: Path, tries: int = 3) -> float:
    """Seconds until the first caption of 1,000 indexed shards, imports not counted; the median."""
    folder = work / "thousand"
    folder.mkdir()
    image = draw(64, 0)
    for shard in range(1000):
        write_shard(folder / f"{shard:05d}.tar", [image] * 4)
    ShardFolder(folder).open()  # builds the indexes
    return statistics.median(measured(START, folder)[0] for _ in range(tries))


def seek(work: Path) -> tuple[float, float]:
    """Slowest seek in seconds, and megabytes that opening and seeking took.

    One index file under 3,000 names stands for 30 million samples; the shard is a hole.
    """
    folder = work / "large"
    folder.mkdir()
    first = folder / "00000.tar"
    first.touch()
    os.truncate(first, 1 << 30)
    rows = np.zeros((SAMPLES, COLUMNS), np.uint32)
    rows[:, 0] = 8 * np.arange(1, SAMPLES + 1)
    rows[:, 1] = rows[:, 5] = np.arange(1, SAMPLES + 1)
    rows[:, 2], rows[:, 6] = 512, 100
    keys = b"".join(b"%08d" % number for number in range(SAMPLES))
    status = first.stat()
    write_index(first, IndexContents(status.st_size, status.st_mtime_ns, rows, keys))
    for shard in range(1, SHARDS):
        os.link(first, folder / f"{shard:05d}.tar")
        os.link(f"{first}.idx", folder / f"{shard:05d}.tar.idx")
    seconds, megabytes = measured(SEEK, folder)
    return seconds, megabytes


# --- the result -----------------------------------------------------------------------------------


def smallest(seconds: dict[int, dict[str, float]], other: str) -> float:
    return round(min(each[other] / each["loader"] for each in seconds.values()), 2)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file, with the machine and the versions")
    parser.add_argument("--rounds", type=int, default=7)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        seconds = loaders(work, parsed.rounds)
        features = features_against_live(work, parsed.rounds)
        startup = start(work)
        seek_seconds, seek_megabytes = seek(work)
    figures: dict[str, object] = {
        "loader_vs_webdataset": smallest(seconds, "webdataset"),
        "loader_vs_webdataset_same_decoder": smallest(seconds, "same_decoder"),
        "loader_vs_hf_datasets": smallest(seconds, "hf_datasets"),
        "features_vs_live": round(features["live"] / features["features"], 1),
        "startup_s": round(startup, 3),
        "seek_s": round(seek_seconds, 4),
        "seek_mb": round(seek_megabytes, 1),
    }
    missed = [name for name, least in TARGETS.items() if figures[name] < least]
    missed += [name for name, most in LIMITS.items() if figures[name] > most]
    figures["missed"] = missed
    write_result(
        parsed.out,
        figures,
        machine=before,
        versions=versions(*PACKAGES),
        ms_an_image={
            side: {name: round(1000 * each, 3) for name, each in found.items()}
            for side, found in seconds.items()
        },
        us_an_image_features=round(1e6 * features["features"], 1),
    )


if __name__ == "__main__":
    main()
