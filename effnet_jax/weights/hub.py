"""Repositories of the Hugging Face Hub, as in hf://timm/tf_efficientnet_b0.ns_jft_in1k."""

import pathlib
import re

from effnet_jax.errors import UserError

PREFIX = "hf://"


def fetch(source: str) -> pathlib.Path:
    """The folder that a repository's weights, and config.json where there is one, are in.

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
        raise UserError(f"{source} needs huggingface_hub: pip install 'effnet_jax[hub]'") from None
    try:
        folder = huggingface_hub.snapshot_download(
            match[1],
            revision=match[2],
            allow_patterns=["model.safetensors", "pytorch_model.bin", "config.json"],
        )
    except Exception as error:  # Of the Hub, of HTTP and of the disk, a dozen kinds.
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"can't fetch {source}: {reason}. Offline, only what was fetched before is there; or "
            "give a file of weights"
        ) from None
    return pathlib.Path(folder)
