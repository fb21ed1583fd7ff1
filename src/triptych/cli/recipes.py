"""`--preset P --stage S`: expansion to the `--config` files that one training run reads.

They are read in this order, and later ones win: base.yaml, presets/P.yaml, stages/S.yaml,
recipes/P/S.yaml (else recipes/published/S.yaml), trainer/H.yaml for --hardware H, and the data:
data/folder.yaml for --data-dir, else data/P/S.yaml if it exists.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from triptych.utils.documents import read_yaml
from triptych.utils.errors import ConfigurationError
from triptych.utils.paths import conf_files, presets

FLAGS = ("--preset", "--stage", "--panel", "--hardware", "--data-dir", "--from")
HELP = """\
--preset P --stage S   preset and stage whose files of conf/ are read, in place of --config
--hardware H           file of conf/trainer, such as ddp; default that of the stage
--data-dir FOLDER      folder of WebDataset shards to train on; default the data of the stage
--from SOURCE          initial weights: a preset, a run's folder, or a weight file
--panel NAME           panel to train as the root: understanding, generation or decoding

examples:
  triptych fit --preset tiny --stage stage2
  triptych fit --preset blip3o_8b --stage stage2 --hardware ddp --data-dir data/photos
  triptych fit --preset tiny --stage stage2 --print_config
"""
# Keys of a preset that a panel as the root needs, by the name of its argument.
PANELS = {
    "understanding": {},
    "generation": {
        "vlm": ("understanding", "init_args", "vlm"),
        "encoder": ("encoder",),
    },
    "decoding": {"encoder": ("encoder",), "vae": ("vae",)},
}
USED_WEIGHTS = {"generation": ("understanding", "encoder"), "decoding": ("encoder", "vae")}


@dataclass
class Expansion:
    """Arguments of `fit` with every file named.

    Attributes:
        command: fit, validate, test or predict.
        head: --config files and flags that replace --preset and its companions.
        rest: all other arguments, which win.
        source: value of --from.
    """

    command: str
    head: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    source: str | None = None

    def arguments(self) -> list[str]:
        """Return the command line. Reads the header of a weight file, which imports torch."""
        weights = weight_flags(self.source) if self.source else []
        return [self.command, *self.head, *weights, *self.rest]


def expand(arguments: list[str]) -> Expansion:
    """Expand --preset and --stage to files; other arguments are returned unchanged.

    Raises:
        ConfigurationError: the preset, stage, hardware or panel is unknown, the pair has no recipe,
            the data folder holds no shard, or --from has no weights.
    """
    command, *words = arguments
    given, rest = _split(words)
    if not given:
        return Expansion(command, rest=rest)
    preset = _choose("preset", given.get("--preset"), list(presets()))
    stage = _choose("stage", given.get("--stage"), list(conf_files("stages/*.yaml")))
    files = [_file("base.yaml"), presets()[preset], _file(f"stages/{stage}.yaml")]
    files.append(recipe_of(preset, stage))
    if (hardware := given.get("--hardware")) is not None:
        trainers = conf_files("trainer/*.yaml")
        files.append(trainers[_choose("hardware", hardware, list(trainers))])
    flags = []
    if (folder := given.get("--data-dir")) is not None:
        require_shards(folder)
        files.append(_file("data/folder.yaml"))
        flags = [f"--data.shards={folder}"]
    elif (own := conf_files(f"data/{preset}/{stage}.yaml").get(stage)) is not None:
        files.append(own)
    source = given.get("--from")
    if source is not None and source not in presets() and not os.path.exists(source):
        raise ConfigurationError(
            f"there are no weights at {source!r}; give --from a preset ({', '.join(presets())}), "
            "a run's folder, or a weight file (.safetensors)."
        )
    if (panel := given.get("--panel")) is None:
        head = [word for file in files for word in ("--config", str(file))]
    else:
        if source is not None:
            raise ConfigurationError("--from loads a whole model, not a --panel; leave one out.")
        head = panel_arguments(_choose("panel", panel, list(PANELS)), files)
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"triptych {command} reads: {' '.join(map(str, files))}", file=sys.stderr)
    return Expansion(command, [*head, *flags], rest, source)


def recipe_of(preset: str, stage: str) -> Path:
    """Return the recipe of a preset for a stage: its own, else the published one.

    Raises:
        ConfigurationError: there is neither, or the preset's own is empty, which means the same.
    """
    for folder in (preset, "published"):
        file = conf_files(f"recipes/{folder}/{stage}.yaml").get(stage)
        if file is not None and read_yaml(file):
            return file
        if file is not None:
            break
    raise ConfigurationError(
        f"the preset {preset!r} has no recipe for the stage {stage!r}; write one as "
        f"conf/recipes/{preset}/{stage}.yaml, with rates, batch size and steps."
    )


def require_shards(folder: str) -> None:
    """Refuse a data folder without a tar file in it or in its subfolders."""
    if not os.path.isdir(folder):
        raise ConfigurationError(f"the data folder {folder!r} does not exist; check --data-dir.")
    for _, _, names in os.walk(folder, followlinks=True):
        if any(name.lower().endswith(".tar") for name in names):
            return
    raise ConfigurationError(
        f"the data folder {folder!r} holds no WebDataset shard (*.tar), nor does a folder inside "
        "it; `triptych data pack` writes shards."
    )


def weight_flags(source: str) -> list[str]:
    """Return --model.weights flags for the weights of a preset, a run's folder, or a weight file.

    Of a run with an EMA, the average: it is what the run's own evaluations scored.

    Raises:
        ConfigurationError: the folder or file has no weights.
    """
    path = Path(source)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _weights_of(path)
    if path.is_dir() and (path / "model.yaml").is_file():
        return _weights_of(path / "model.yaml")
    for name in ("weights_ema.safetensors", "weights.safetensors"):
        if path.is_dir() and (path / name).is_file():
            path = path / name
    if path.is_file() and path.suffix == ".safetensors":
        from triptych.checkpoints import stored_names
        from triptych.checkpoints.weight_files import label_of

        labels = sorted({label_of(name) for name in stored_names([path])})
        return [f"--model.weights.{label}={path}" for label in labels]
    if path.exists():
        raise ConfigurationError(
            f"{source} holds no weights.safetensors; an unfinished run has checkpoints only: "
            "export one with `triptych export CHECKPOINT`, and give that file to --from."
        )
    return _weights_of(presets()[source])


def _weights_of(model_file: Path) -> list[str]:
    named = (read_yaml(model_file).get("model") or {}).get("weights") or {}
    return [f"--model.weights.{label}={file}" for label, file in named.items() if file]


def panel_arguments(panel: str, files: list[Path]) -> list[str]:
    """Return the arguments that train one panel of a preset as the root, with what it depends on.

    Args:
        panel: a key of PANELS.
        files: base, preset, stage, recipe and further files.
    """
    documents = [read_yaml(file) for file in files]
    preset = documents[1]["model"]
    own = preset[panel]
    init = dict(own.get("init_args") or {})
    for name, path in PANELS[panel].items():
        component = preset
        for key in path:
            component = component[key]
        init[name] = component
    weights = preset.get("weights") or {}
    if panel in USED_WEIGHTS:
        init["weights"] = {label: weights.get(label) for label in USED_WEIGHTS[panel]}
    init["optimization"] = documents[3]["model"]["optimization"]
    arguments = [f"--model={own['class_path']}", "--config", str(files[0])]
    model = {"model": {"class_path": own["class_path"], "init_args": init}}
    arguments += ["--config", yaml.safe_dump(model, sort_keys=False)]
    for document in documents[2:]:
        others = {key: value for key, value in document.items() if key != "model"}
        # the evaluations of a data file need whole models
        if "data" in others and "max_steps" not in (others.get("trainer") or {}):
            others.pop("trainer", None)
        arguments += ["--config", yaml.safe_dump(others, sort_keys=False)]
    return arguments


def _split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split off our flags by name from all other arguments."""
    given: dict[str, str] = {}
    rest: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, joined, value = word.partition("=")
        if name not in FLAGS:
            rest.append(word)
            continue
        if not joined:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigurationError(f"{name} needs a value.")
            value = remaining.pop(0)
        given[name] = value
    return given, rest


def _choose(kind: str, name: str | None, known: list[str]) -> str:
    choices = ", ".join(sorted(known))
    if name is None:
        raise ConfigurationError(
            f"--{kind} is missing: --preset and --stage go together; choose one of {choices}."
        )
    if name not in known:
        raise ConfigurationError(f"the {kind} {name!r} is unknown; choose one of {choices}.")
    return name


def _file(name: str) -> Path:
    """Return a file of conf/ that every installation has."""
    return conf_files(name)[Path(name).stem]
