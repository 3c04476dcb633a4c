"""Resizing with the interpolations of OpenCV, TensorFlow 1 and Pillow, which differ.

Evaluating with a different interpolation than in training loses accuracy.

  bicubic, bilinear, area, nearest   OpenCV: pixel centres at a half; only area is antialiased.
      bilinear equals PyTorch's `interpolate` and TensorFlow 2's `tf.image.resize`. bicubic has the
      kernel a = -0.75 and equals PyTorch's, not TensorFlow's. It is fast, and the default.
  bicubic_tf1, bilinear_tf1          TensorFlow 1, used by the reference: a = -0.75, and pixels at
      their corners. (TensorFlow 2's bicubic has a = -0.5, and omits inputs beyond the border.)
  bicubic_pillow, bilinear_pillow    Pillow, used by timm and torchvision: antialiased, a = -0.5.
"""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

OPENCV = {
    "bicubic": cv2.INTER_CUBIC,
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
}
PILLOW = {"bicubic_pillow": Image.Resampling.BICUBIC, "bilinear_pillow": Image.Resampling.BILINEAR}
A = -0.75  # The parameter of TensorFlow 1's cubic kernel.
TABLE = 1024  # The steps per pixel of TensorFlow 1's table of this kernel.
WIDE = 16  # An image whose width is above this multiple of its height is narrowed first.

# For each output, the indices of its inputs, int [outputs, k], and their weights, float32.
Taps = tuple[np.ndarray, np.ndarray]


def _cubic(position: np.ndarray, size: int) -> Taps:
    """Source: TensorFlow's core/kernels/image/resize_bicubic_op.cc, without half_pixel_centers."""
    first = np.floor(position).astype(int)
    x = np.rint((position - first) * TABLE) / TABLE
    x = np.stack([1 + x, x, 1 - x, 2 - x], 1)  # Distances of the four inputs.
    inner = ((A + 2) * x - (A + 3)) * x * x + 1
    outer = ((A * x - 5 * A) * x + 8 * A) * x - 4 * A
    weights = np.where([False, True, True, False], inner, outer)
    # Beyond the border, the border pixel repeats.
    return np.clip(first[:, None] + np.arange(-1, 3), 0, size - 1), weights.astype(np.float32)


def _linear(position: np.ndarray, size: int) -> Taps:
    """Source: TensorFlow's core/kernels/image/resize_bilinear_op.cc."""
    first = np.floor(position).astype(int)
    x = position - first
    weights = np.stack([1 - x, x], 1)
    return np.minimum(first[:, None] + np.arange(2), size - 1), weights.astype(np.float32)


TF1 = {"bicubic_tf1": _cubic, "bilinear_tf1": _linear}
INTERPOLATIONS = (*OPENCV, *TF1, *PILLOW)


def resize(
    image: np.ndarray, shape: tuple[int, int], interpolation: str, truncate: bool = False
) -> np.ndarray:
    """Resizes a uint8 image [h, w, 3], or [h, w, 4] whose last channel is dropped.

    The result is uint8 [*shape, 3], rounded or, as in the reference before AutoAugment, truncated.
    `interpolation` is one of INTERPOLATIONS.
    """
    if interpolation == "bicubic" and image.shape[:2] != shape and not truncate:
        # At 224 px OpenCV takes 205 us with three channels, and 95 us with four including both
        # conversions; one value in 300,000 then differs by 1.
        if image.shape[2] == 3:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
        image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_CUBIC)
        return cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
    if image.shape[2] == 4:
        image = cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)
    if image.shape[:2] == shape:
        return np.ascontiguousarray(image)
    if truncate:
        # 1e-3 is added because the float of a whole number may be slightly too small.
        resized = _resize(image.astype(np.float32), shape, interpolation) + np.float32(1e-3)
        return np.clip(resized, 0, 255).astype(np.uint8)
    if interpolation in TF1:
        resized = _resize(image.astype(np.float32), shape, interpolation)
        return np.clip(np.rint(resized), 0, 255).astype(np.uint8)
    return _resize(image, shape, interpolation)


def _resize(image: np.ndarray, shape: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes [h, w, 3] to [*shape, 3], both uint8 or both float32; TF1 needs float32."""
    if interpolation in OPENCV:
        return cv2.resize(image, shape[::-1], interpolation=OPENCV[interpolation])
    if interpolation in PILLOW:
        # Pillow has float images of one channel only.
        planes = [image] if image.dtype == np.uint8 else cv2.split(image)
        size, kernel = shape[::-1], PILLOW[interpolation]
        resized = [np.asarray(Image.fromarray(plane).resize(size, kernel)) for plane in planes]
        return cv2.merge(resized) if len(resized) > 1 else resized[0]
    kernel = TF1[interpolation]
    if image.shape[1] > WIDE * image.shape[0]:  # The width first takes less time and memory.
        return cv2.transpose(_resize(cv2.transpose(image), shape[::-1], interpolation))
    rows = _resize_height(image, shape[0], kernel)
    return cv2.transpose(_resize_height(cv2.transpose(rows), shape[1], kernel))


def _resize_height(image: np.ndarray, size: int, kernel: Callable[..., Taps]) -> np.ndarray:
    """Resizes float32 [h, w, 3] to [size, w, 3] by a product with a sparse matrix."""
    import scipy.sparse  # Not at the top, because the import takes a tenth of a second.

    scale = np.float32(len(image)) / np.float32(size)
    inputs, weights = kernel(np.arange(size, dtype=np.float32) * scale, len(image))
    ends = np.arange(0, inputs.size + 1, inputs.shape[1])
    values = weights.ravel(), inputs.ravel(), ends
    matrix = scipy.sparse.csr_array(values, shape=(size, len(image)))
    return (matrix @ image.reshape(len(image), -1)).reshape(size, *image.shape[1:])
