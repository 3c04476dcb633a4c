"""ImageNet-C: the validation images under 15 corruptions of 5 severities (arXiv 1903.12261).

Command:   python eval.py --workdir=runs/b0 --data=imagenet_c [--data_dir=DIR]
Data:      TFDS imagenet2012_corrupted/CORRUPTION_SEVERITY, split validation: 75 x 50,000 images,
           which TFDS makes itself, as JPEG: results on the authors' own files, which are read from
           --data_dir=FOLDER, may differ a little.
           They are cropped already, to 224 pixels, so all of each is taken, as by the authors
           (github.com/hendrycks/robustness, ImageNet-C/test.py), and resized for the run.
Metric:    mCE: for each corruption the top-1 errors over those of AlexNet, both summed over the
           severities; the mean over corruptions. 1.0 is AlexNet's; the paper prints 100. Beside it
           the mean top-1, and the mean error of each corruption. With --csv a row for each of 75.
"""

from effnet_jax.imagenet.variants import evaluation_set

# AlexNet's top-1 errors, means over the severities: github.com/google-research/augmix, imagenet.py;
# github.com/NVlabs/FAN, utils/mce_utils.py, has the same.
ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def get_config():
    config = evaluation_set("imagenet2012_corrupted", "validation", 50_000)
    config.corruptions = ALEXNET_ERROR
    config.severities = (1, 2, 3, 4, 5)
    config.preprocess.crop_rule = "whole"
    return config
