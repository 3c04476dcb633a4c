"""Repositories of the Hugging Face Hub, as in hf://timm/tf_efficientnet_b0.ns_jft_in1k."""

import pathlib
import re

from effnet_jax.errors import UserError

PREFIX = "hf://"
# Files of weights in a repository; the second names shards.
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
SHARDS = "model-?????-of-?????.safetensors"


def fetch(source: str) -> pathlib.Path:
    """The folder with a repository's weights, and its config.json if it has one.

    Args:
      source: hf://ORG/NAME, or hf://ORG/NAME@REVISION.

    Raises:
      UserError: huggingface_hub isn't installed, the Hub can't be reached, or there are no weights.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if not match:
        raise UserError(f"can't read {source!r}; write hf://ORG/NAME or hf://ORG/NAME@REVISION")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{source} needs huggingface_hub: pip install huggingface_hub") from None
    try:
        patterns = [*FILES, SHARDS, "config.json"]
        folder = huggingface_hub.snapshot_download(
            match[1], revision=match[2], allow_patterns=patterns
        )
    except Exception as error:  # The Hub, HTTP and the disk raise a dozen kinds of error.
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"can't fetch {source}: {reason}. Offline, only repositories fetched before are there"
        ) from None
    return pathlib.Path(folder)
