"""Evaluation sets, one file each: python eval.py --workdir=DIR --data=NAME, or --weights=FILE.

`get_config()`, or `get_config(argument)` for the text after the name and a colon, returns the keys
of `imagenet.variants.evaluation_set`. Every set has the 1000 classes of ImageNet, named by WordNet
ids, which have to be among the network's. Resolution and preprocessing are the weights'
own, except for what a set changes.

All sets are read by their TFDS name, prepared as ArrayRecord, or from --data_dir=FOLDER as their
authors ship them (effnet_jax/imagenet/folders.py). Where a set is missing, the error gives the
command; --data_dir says where it is, if not where the run's own data was.
"""
