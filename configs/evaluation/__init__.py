"""Evaluation sets, one file each: python eval.py --workdir=DIR --data=NAME, or --weights=FILE.

`get_config()` returns the keys of `imagenet.variants.evaluation_set`. `get_config(argument)` gets
the text after NAME and a colon. Every set has classes of ImageNet, named by WordNet ids, which must
be among the network's. Resolution and preprocessing are those of the weights, unless a set changes
them.

A set is read by its TFDS name, prepared as ArrayRecord, or from --data_dir=FOLDER as its authors
ship it (effnet_jax/imagenet/folders.py). If it is missing, the error gives the command that
prepares it. --data_dir is needed where the set is not in the `data_dir` of the run.
"""
