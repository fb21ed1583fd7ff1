"""Loading of models, processors and tokenizers of transformers without running their code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triptych.utils.documents import TEXT_BYTES, open_regular, read_json
from triptych.utils.errors import UserError


def load_pretrained(part: str, source: str | Path, **options: Any) -> Any:
    """Load a model, processor or tokenizer of transformers.

    Code in the files (`auto_map`) is never run, and weights are read only from safetensors.

    Args:
        part: class name (importing all of transformers is slow).
        source: folder or hub id.
        options: keyword arguments of `from_pretrained`.

    Raises:
        UserError: the source does not exist, is damaged, or needs its own code.
        ImportError: a required library is not installed.
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
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{source} holds no {part} that can be read ({reason or repr(error)})."
        ) from error
