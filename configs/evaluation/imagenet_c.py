"""ImageNet-C: the validation images under 15 corruptions of 5 severities (arXiv 1903.12261).

Command:   python eval.py --workdir=runs/b0 --data=imagenet_c [--data_dir=DIR]
Data:      TFDS imagenet2012_corrupted/CORRUPTION_SEVERITY, split validation: 75 x 50,000 images.
           TFDS computes them and stores them as JPEG, so results may differ a little from those on
           the authors' files, which --data_dir=FOLDER reads.
           The images are already cropped to 224 pixels. They are not cropped again, as in the
           authors' github.com/hendrycks/robustness, ImageNet-C/test.py, but resized for the run.
Metric:    mCE: for each corruption the sum of the top-1 errors over the severities, divided by
           that of AlexNet; then the mean over corruptions. AlexNet has 1.0, which the paper prints
           as 100. Also the mean top-1, and the mean error of each corruption. --csv adds 75 rows.
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
