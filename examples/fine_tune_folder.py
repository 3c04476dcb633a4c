"""Fine-tunes released weights on a folder of images and classifies images with the result.

Usage: python examples/fine_tune_folder.py DIR lite0.safetensors runs/mine photo.jpg

DIR has train/CLASS/*.jpg and val/CLASS/*.jpg, or only CLASS/*.jpg, of which a tenth is held out.
The same command with the same workdir resumes training; once training is complete, it only
classifies. `train.py` does the same from the command line; see docs/fine_tuning.md.
"""

import argparse

import jax

import effnet_jax
from effnet_jax import experiments, weights


def fine_tune(images: str, source: str, workdir: str, **changes) -> dict[str, float]:
    """Trains in a workdir and returns the final scores; `changes` are keys of the config."""
    config = experiments.read("folder")  # configs/folder.py: 500 steps of 32 images.
    config.data.data_dir, config.init.weights = images, source
    config.update_from_flattened_dict(changes)
    _, scores = effnet_jax.train(config, workdir)
    return scores


def classify(workdir: str, images: list[str]) -> list[str]:
    """Predicts the class of each image with the averaged weights of the newest checkpoint."""
    model, variables, preprocess = effnet_jax.load(workdir)
    classes = weights.load(workdir).classes
    apply = jax.jit(model.apply, static_argnames="train")
    logits, _ = apply(variables, preprocess(images), train=False)
    return [classes[number] for number in logits.argmax(-1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("images", "weights", "workdir"):
        parser.add_argument(name)
    parser.add_argument("photos", nargs="*")
    args = parser.parse_args()
    scores = fine_tune(args.images, args.weights, args.workdir)
    print(f"top-1 on the held-out images: {scores['val/ema/top1']:.3f}")
    if args.photos:
        for photo, name in zip(args.photos, classify(args.workdir, args.photos), strict=True):
            print(f"{photo}: {name}")


if __name__ == "__main__":
    main()
