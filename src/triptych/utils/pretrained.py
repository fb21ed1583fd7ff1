"""Models, processors and tokenizers of transformers: files are data, none of their code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.utils.documents import TEXT_BYTES, open_regular, read_json
from triptych.utils.errors import UserError


def load_pretrained(part: str, source: str | Path, **options: Any) -> Any:
    """Load a model, processor or tokenizer of transformers; the only place that loads one.

    Code that comes with the files (`auto_map`) is never run, nor asked about, and weights are read
    only from safetensors.

    Args:
        part: class name, as text: importing all of transformers takes seconds.
        source: a folder, or a name on the hub.

    Raises:
        UserError: it does not exist, its files are damaged, or it needs its own code.
        ImportError: it needs a library that is not installed.
    """
    import transformers

    if Path(source).is_dir():
        for path in sorted(Path(source).iterdir()):
            if path.suffix == ".json":
                read_json(path, object, TEXT_BYTES)
            elif not path.is_dir():
                open_regular(path).close()
    if not part.endswith(("Tokenizer", "Processor")):
        options["use_safetensors"] = True
    try:
        return getattr(transformers, part).from_pretrained(
            str(source), trust_remote_code=False, **options
        )
    except ImportError:
        raise
    except Exception as error:  # the tokenizers library raises that very class for a damaged file
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{source} holds no {part} that can be read ({reason or repr(error)})."
        ) from error
