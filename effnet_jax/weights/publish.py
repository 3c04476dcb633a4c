"""Publishes weights on the Hugging Face Hub: safetensors, config.json and a model card."""

import json
import pathlib
import re
from typing import Any

import jax
import jinja2

from effnet_jax import config as config_lib
from effnet_jax.errors import UserError, check_choice
from effnet_jax.run import files, writers
from effnet_jax.weights import WRITTEN, Weights, hub, ours, save, timm

CARD = pathlib.Path(__file__).with_name("card.md")
CONFIG = "config.json"
# Config keys whose values are paths on the machine of a run.
PLACES = re.compile(r"config\.(data\.data_dir|init\.weights|evaluations)\b")


def write(
    folder: pathlib.Path,
    weights: Weights,
    repository: str,
    license: str,
    source: str,
    which: str = "ema",
    names: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the files of a repository to a folder, which `weights.load` reads.

    Args:
      folder: the folder; created if it is missing.
      weights: the weights to publish.
      repository: ORG/NAME.
      license: name of the licence on the Hub, such as "apache-2.0".
      source: what the weights were loaded from; for a run, the card has data, recipe and scores.
      which: "ema" or "raw", the weights of a run.
      names: names of the arrays: "timm", with timm's config.json, or "ours"; None means timm's if
        timm has the network.
      overwrite: replace existing files.

    Raises UserError if a file exists or can't be written, or if timm lacks the network.
    """
    check_choice("names", names or "ours", WRITTEN)
    name = timm.name_of(weights)
    if names == "timm" and name is None:
        raise UserError("timm has no network for these weights; --names=ours publishes them")
    name = None if names == "ours" else name
    paths = [folder / each for each in (hub.FILES[0], CONFIG, "README.md")]
    if not overwrite and (existing := [each for each in paths if each.exists()]):
        raise UserError(f"{existing[0]} already exists; --overwrite replaces it")
    save(paths[0], weights, "timm" if name else "ours", overwrite)
    config = (
        timm.to_config(weights, name) if name else json.loads(ours.to_metadata(weights)[ours.KEY])
    )
    try:
        files.write_json(paths[1], config)
        files.write_atomically(paths[2], _card(weights, repository, license, source, which, name))
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from None


def _card(
    weights: Weights, repository: str, license: str, source: str, which: str, name: str | None
) -> str:
    """Returns the text of the model card."""
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Template(CARD.read_text(), **options, keep_trailing_newline=True).render(
        repository=repository,
        license=license,
        timm=name,
        network=name or weights.config.base,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"])),
        classes=weights.classes,
        preprocess=weights.preprocess,
        origin=weights.origin,
        source=pathlib.PurePath(source).name,
        run=_describe_run(pathlib.Path(source).expanduser(), weights.step, which),
        step=weights.step,
        which=which,
    )


def _describe_run(source: pathlib.Path, step: int | None, which: str) -> dict[str, Any] | None:
    """Returns data, recipe, scores and commit of a run; None if the source is not from a run."""
    workdir = source.parent.parent if source.parent.name == ours.FOLDER else source
    starts = files.read_rows(workdir / "runs.jsonl")
    if step is None or not starts:
        return None
    config, last = config_lib.load(workdir), starts[-1]
    data, start = config.data, config.init.weights
    unnamed = data.source in ("folder", "parquet", "webdataset")
    name = pathlib.Path(data.data_dir).name if unnamed else data.name
    changes = config_lib.changes(config_lib.get_config().to_dict(), config.to_dict())
    scores = writers.read_scores(workdir, step)
    names = [key.split("/")[0] for key in scores if key.endswith(f"/{which}/top1")]
    return {
        "data": f"{name}, {last['records']:,} images (split {data.train_split})",
        "init": start and pathlib.PurePath(start).name,
        "commit": last["commit"],
        "jax": last["versions"]["jax"],
        "changes": [line for line in changes if not PLACES.match(line)],
        "scores": [
            (each, scores[f"{each}/{which}/top1"], int(scores[f"{each}/{which}/count"]))
            for each in names
        ],
    }


def push(folder: pathlib.Path, repository: str, overwrite: bool) -> str:
    """Uploads a folder and returns its address; raises UserError if the Hub refuses it.

    With `overwrite`, an existing repository gets a new version.
    """
    api = hub.library(f"hf://{repository}").HfApi()
    try:
        url = api.create_repo(repository, exist_ok=overwrite)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:
        raise UserError(f"can't publish {repository}: {hub.reason(error)}") from None
    return str(url)
