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
    """Returns the weight files in a folder, one per set of weights; raises UserError if none.

    Hidden files and folders, such as the caches of downloads, are skipped.
    """
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(ENDINGS) and path.is_file() and not SHARD.search(path.name)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not paths:
        raise UserError(f"no weights in {folder} (files that end in {', '.join(ENDINGS)})")
    return paths


def names(path: pathlib.Path) -> list[str]:
    """Returns the names that the weights of a file may have.

    They come from the file's name, or from its folder if all such files have the same name. The
    last eight digits of PyTorch's file names, a part of the checksum, are optional.
    """
    ending = next(ending for ending in ENDINGS if path.name.endswith(ending))
    stem, folder = path.name.removesuffix(ending), path.absolute().parent
    if stem in ("model", "pytorch_model") or ending == ".index":
        return [f"{folder.parent.name}/{folder.name}", folder.name]
    return [stem, re.sub(r"-[0-9a-f]{8}$", "", stem)]


def checksum(path: pathlib.Path) -> str:
    """Returns a file's SHA-256; for checkpoints and shards, the SHA-256 of all files' digests."""
    paths, stem = [path], path.name.removesuffix(INDEX)
    if stem != path.name:
        paths += [p for p in path.parent.glob("*.safetensors") if p.name.startswith(f"{stem}-")]
    elif path.suffix == ".index":
        paths += [p for p in path.parent.iterdir() if p.name.startswith(f"{path.stem}.data-")]
    digests = []
    for each in sorted(paths):
        with open(each, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256"))
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def load_named(path: pathlib.Path, classes: str, **options: Any) -> Weights:
    """Calls `weights.load`; if that fails, calls it with the file's name in timm as the model.

    `classes` are used if the file does not state its classes.
    """
    try:
        loaded = load(path, **options)
    except UserError:
        options["model"] = next((name for name in names(path) if timm.by_name(name)), None)
        if options["model"] is None:
            raise
        loaded = load(path, **options)
    return loaded if loaded.classes[0] != "class 0" else load(path, classes=classes, **options)
