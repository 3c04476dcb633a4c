"""Repositories of the Hugging Face Hub, as in hf://timm/tf_efficientnet_b0.ns_jft_in1k."""

import pathlib
import re
import types

from effnet_jax.errors import UserError

PREFIX = "hf://"
# Files of weights in a repository; the second lists shards.
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
SHARDS = "model-?????-of-?????.safetensors"


def library(what: str) -> types.ModuleType:
    """Returns the package huggingface_hub; raises UserError, which names `what`, without it."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{what} needs huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


def reason(error: Exception) -> str:
    """Returns the first line of an error; the Hub, HTTP and the disk raise a dozen types."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def parse(source: str) -> tuple[str, str | None]:
    """Returns ORG/NAME and the revision of hf://ORG/NAME@REVISION; raises UserError otherwise."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if not match:
        raise UserError(f"can't read {source!r}; write hf://ORG/NAME or hf://ORG/NAME@REVISION")
    return match[1], match[2]


def fetch(source: str) -> pathlib.Path:
    """Downloads a repository's weights, and its config.json if it has one; returns the folder.

    Args:
      source: hf://ORG/NAME, or hf://ORG/NAME@REVISION.

    Raises:
      UserError: huggingface_hub isn't installed, the Hub can't be reached, or there are no weights.
    """
    repository, revision = parse(source)
    patterns = [*FILES, SHARDS, "config.json"]
    try:
        folder = library(source).snapshot_download(
            repository, revision=revision, allow_patterns=patterns
        )
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"can't fetch {source}: {reason(error)}. Offline, only repositories that were fetched "
            "before can be read"
        ) from None
    return pathlib.Path(folder)
