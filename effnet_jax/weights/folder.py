"""A folder of released weights: its files, their names and checksums."""

import hashlib
import pathlib
import re
from typing import Any

from effnet_jax.errors import UserError
from effnet_jax.weights import Weights, load, timm
from effnet_jax.weights.files import INDEX

SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
ENDINGS = (INDEX, ".safetensors", ".npz", ".pth", ".pt", ".bin", ".h5", ".index")


def list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of weights in a folder, one for each set of weights; raises UserError for none.

    What is hidden is passed over, as the caches of downloads.
    """
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(ENDINGS) and path.is_file() and not SHARD.search(path.name)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise UserError(f"no weights in {folder} (files that end in {', '.join(ENDINGS)})")
    return found


def names(path: pathlib.Path) -> list[str]:
    """What the weights of a file may be called: itself, or its folder where all are called alike.

    The last eight digits of PyTorch's names, a part of the checksum, may be left out.
    """
    ending = next(ending for ending in ENDINGS if path.name.endswith(ending))
    stem, folder = path.name.removesuffix(ending), path.absolute().parent
    if stem in ("model", "pytorch_model") or ending == ".index":
        return [f"{folder.parent.name}/{folder.name}", folder.name]
    return [stem, re.sub(r"-[0-9a-f]{8}$", "", stem)]


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file; of a checkpoint's files or of shards, the SHA-256 of theirs together."""
    parts, stem = [path], path.name.removesuffix(INDEX)
    if stem != path.name:
        parts += [p for p in path.parent.glob("*.safetensors") if p.name.startswith(f"{stem}-")]
    elif path.suffix == ".index":
        parts += [p for p in path.parent.iterdir() if p.name.startswith(f"{path.stem}.data-")]
    digests = []
    for part in sorted(parts):
        with open(part, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def load_named(path: pathlib.Path, classes: str, **options: Any) -> Weights:
    """`weights.load`, with timm's name of a file where that alone leaves something open.

    `classes` are those of a file that doesn't state them.
    """
    try:
        found = load(path, **options)
    except UserError:
        options["model"] = next((name for name in names(path) if timm.by_name(name)), None)
        if options["model"] is None:
            raise
        found = load(path, **options)
    return found if found.classes[0] != "class 0" else load(path, classes=classes, **options)
