"""Reading and writing weight files.

A file has full parameter and buffer names (`generation.queries`), so that a model can be loaded
from several files, one per stage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from triptych.checkpoints.key_prefixes import plain_names, unknown_prefix
from triptych.checkpoints.published.safetensors_stream import DTYPES, Stored, write_tensors
from triptych.checkpoints.weight_checks import require_kind, require_sound
from triptych.training.fsdp import copy_into
from triptych.utils.atomic_write import replacing
from triptych.utils.documents import open_regular
from triptych.utils.errors import UserError
from triptych.utils.paths import PREFIX, resolve
from triptych.utils.precision import exported

CREATED_BY = {
    "understanding": "make train-stage1",
    "encoder": "make train-encoder",
    "vae": "make train-encoder",
    "decoder": "make train-decoder",
    "generation": "make train-stage2",
}


@dataclass(frozen=True)
class WeightFiles:
    """Initial weight files of a model: safetensors, or `asset:NAME` inside the package.

    A file may have tensors of several parts; null leaves a part at its random initialization.
    """

    understanding: str | None = None
    encoder: str | None = None
    vae: str | None = None
    """Autoencoder of the decoder; null if the encoder's file has it too, as after a run that
    trained both."""
    decoder: str | None = None
    generation: str | None = None


# prefix in `UnifiedModule` of each part of a panel that is trained as the root
_HOMES = {
    "vlm": "understanding.",
    "queries": "generation.",
    "dit": "generation.",
    "decoder": "decoding.",
    "heads": "encoding.",
}


# first segments of full names
_PARTS = {"understanding", "encoder", "generation", "decoding", "encoding", "vae"}


def full_name(name: str) -> str:
    """Name inside `UnifiedModule` of a parameter of any root module."""
    return _HOMES.get(name.split(".")[0], "") + name


def label_of(name: str) -> str:
    """Label of the weight file of a parameter of `UnifiedModule`."""
    top = name.split(".")[0]
    if top == "decoding":
        return "decoder"
    return top if top in CREATED_BY else "encoder"


def save_weights(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Write tensors to a safetensors file atomically; see `exported` for their dtypes.

    The same tensors and metadata give the same bytes.

    Raises:
        UserError: a value is NaN or infinite, the disk is full, or the folder cannot be written; an
            older file stays.
    """
    stored = {name: stored_as(t, exported(name, t, dtype)) for name, t in tensors.items()}
    try:
        with replacing(path) as file:
            write_tensors(file, stored, metadata)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}); make room or choose another "
            "folder."
        ) from error


def stored_as(tensor: Tensor, dtype: torch.dtype) -> Stored:
    """Wrap a tensor for `write_tensors`, cast to `dtype`."""

    def chunks() -> Iterator[memoryview]:
        whole = tensor.detach().to("cpu", dtype).contiguous()
        if whole.numel():
            yield memoryview(whole.reshape(-1).view(torch.uint8).numpy())

    return Stored(DTYPES[dtype], tuple(tensor.shape), chunks)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata written by `save_weights`: stage, preset, steps."""
    with _open(path) as file:
        return file.metadata() or {}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a weight file by full name.

    Raises:
        UserError: it is not a safetensors file.
    """
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.names}


def load_weights(
    module: nn.Module, sources: WeightFiles, left_out: tuple[str, ...] = ()
) -> set[str]:
    """Fill `module` in place, one tensor at a time; returns the full names of filled tensors.

    For a sharded parameter, each rank reads only its own rows. Names of a part that this model does
    not have (a panel that a stage excludes) are skipped, and so are those that begin with one of
    `left_out`: nothing of them is read. Any other unknown name, and any other shape, is an error.

    Raises:
        UserError: a file is missing, is not a safetensors file, does not fit the model, or has
            invalid weights.
    """
    own = _places(module)
    parts = _parts(own)
    filled: set[str] = set()
    require_one_vae(sources)
    for label, path in find_all(sources).items():
        with _open(path, own, left_out) as file:
            for name in file.names:
                if name.split(".")[0] not in parts or name.startswith(left_out):
                    continue
                _fill(own, name, file, label, path)
                filled.add(name)
    return filled


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    left_out: tuple[str, ...] = (),
) -> None:
    """Fill `module` with tensors by full name, except for missing parts and those of `left_out`.

    Raises:
        UserError: a tensor does not fit the model, or is invalid; the message names `source`.
    """
    own = _places(module)
    parts = _parts(own)
    for name, tensor in tensors.items():
        if name.split(".")[0] not in parts or name.startswith(left_out):
            continue
        if name not in own or own[name].shape != tensor.shape:
            shape = list(own[name].shape) if name in own else "nothing of that name"
            raise UserError(
                f"{source}: {name} has shape {list(tensor.shape)}, this model wants {shape}: it "
                "was made with another preset or other sizes."
            )
        require_kind(name, tensor.dtype, own[name].dtype, source)
        copy_into(own[name], tuple(tensor.shape), lambda rows, t=tensor: t[rows] if t.dim() else t)
        require_sound(name, own[name], source)


def stored_names(
    paths: Iterable[Path], module: nn.Module | None = None, left_out: tuple[str, ...] = ()
) -> set[str]:
    """Full names of all tensors in files; reads only the headers.

    `module` and `left_out` are those of `load_weights`.

    Raises:
        UserError: a file is not a safetensors file, or has no name of a part of any model or of
            `module`.
    """
    names: set[str] = set()
    own = {} if module is None else _places(module)
    for path in paths:
        with _open(path, own, left_out) as file:
            names |= file.names.keys()
            if file.names and not _parts(file.names) & (_PARTS | _parts(own)):
                raise UserError(f"{path}: {unknown_prefix(min(file.stored))}.")
    return names


def expected_names(
    own: Collection[str] = (), left_out: tuple[str, ...] = ()
) -> Callable[[str], bool]:
    """Function that tells whether a full name is in `own`, left out, or of a part not in `own`."""
    absent = _PARTS - _parts(own)
    return lambda name: name in own or name.startswith(left_out) or name.split(".")[0] in absent


def _parts(names: Iterable[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def find(label: str, source: str) -> Path:
    """Path of a weight file.

    Raises:
        UserError: the file does not exist; the message names the commands that create it.
    """
    path = Path(source)
    # files of `triptych convert` are named by their labels
    converted = not source.startswith(PREFIX) and path.name == f"{label}.safetensors"
    if converted and not path.exists():
        raise UserError(
            f"{path} does not exist; `triptych convert CHECKPOINT {path.parent}` makes it of a "
            f"published checkpoint, `{CREATED_BY[label]}` trains it."
        )
    return resolve(source, created_by=CREATED_BY[label])


def find_all(sources: WeightFiles) -> dict[str, Path]:
    """Paths of the given weight files by label; also a cheap check before long work.

    Raises:
        UserError: a file does not exist.
    """
    named = {label: source for label, source in asdict(sources).items() if source is not None}
    return {label: find(label, source) for label, source in named.items()}


def require_files(sources: WeightFiles) -> None:
    """Check every given weight file by its header, before long work.

    Raises:
        UserError: a file does not exist or is not a safetensors file, or two files have a VAE.
    """
    for path in find_all(sources).values():
        with _opened(path):
            pass
    require_one_vae(sources)


def require_one_vae(sources: WeightFiles) -> None:
    """Refuse an encoder's file with a VAE together with another file for the VAE.

    Raises:
        UserError: both files have a VAE.
    """
    paths = find_all(sources)
    encoder, vae = paths.get("encoder"), paths.get("vae")
    if encoder is None or vae is None or encoder.resolve() == vae.resolve():
        return
    with _open(encoder) as file:
        tensors = [name for name in file.names if label_of(name) == "vae"]
    if tensors:
        raise UserError(
            f"{encoder} (encoder) holds a VAE too ({tensors[0]}), and {vae} is named for it; name "
            f"one file for both, by --model.weights.vae={encoder}, or leave the other out, by "
            "--model.weights.vae=null."
        )


def hold(sources: WeightFiles, beginning: str) -> bool:
    """Whether a file has a tensor whose full name begins with `beginning`; reads only headers."""
    for path in find_all(sources).values():
        with _open(path) as file:
            if any(name.startswith(beginning) for name in file.names):
                return True
    return False


def _places(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by full name."""
    own = dict(module.named_parameters())
    for path, each in module.named_modules():
        for name, buffer in each.named_buffers(recurse=False):
            if name not in each._non_persistent_buffers_set:
                own[f"{path}.{name}" if path else name] = buffer
    return {full_name(name): tensor for name, tensor in own.items()}


def _fill(own: Mapping[str, Tensor], name: str, file: _File, label: str, path: Path) -> None:
    if name not in own:
        raise UserError(
            f"{path} ({label}) holds {name}, which this model does not have: "
            "it was made with another preset or other sizes; retrain it or change --model.weights."
        )
    stored = file.get_slice(name)
    shape = tuple(stored.get_shape())
    if own[name].shape != shape:
        raise UserError(
            f"{path} ({label}): {name} has shape {list(shape)}, this model wants "
            f"{list(own[name].shape)}: it was made with another preset or other sizes; "
            f"retrain it (`{CREATED_BY.get(label, 'triptych fit')}`) or undo the change."
        )
    require_kind(name, stored.get_dtype(), own[name].dtype, f"{path} ({label})")
    copy_into(own[name], shape, lambda rows: stored[rows] if shape else file.get_tensor(name))
    require_sound(name, own[name], f"{path} ({label})")


class _File:
    """An open weight file, with names without the prefixes of wrappers.

    Args:
        path: the file.
        own: names of the model to fill, if any.
        left_out: beginnings of further names that are expected.
    """

    def __init__(self, path: Path, own: Collection[str], left_out: tuple[str, ...]) -> None:
        self.file = _opened(path)
        self.stored = list(self.file.keys())
        plain = plain_names(self.stored, expected_names(own, left_out), path)
        self.names = {plain[stored]: stored for stored in self.stored}

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)

    def metadata(self) -> dict[str, str] | None:
        return self.file.metadata()

    def get_slice(self, name: str):
        return self.file.get_slice(self.names[name])

    def get_tensor(self, name: str) -> Tensor:
        return self.file.get_tensor(self.names[name])


def _open(path: Path, own: Collection[str] = (), left_out: tuple[str, ...] = ()) -> _File:
    return _File(path, own, left_out)


def _opened(path: Path) -> safe_open:
    try:
        open_regular(path).close()
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        remedy = "copy or download it again"
        if path.suffix.lower() != ".safetensors":
            remedy = (
                "save its tensors with safetensors.torch.save_file, or, of a checkpoint of ours, "
                "with `triptych export`"
            )
        raise UserError(f"{path} is no safetensors file ({error}); {remedy}.") from error
