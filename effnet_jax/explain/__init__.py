"""Activation maps: which parts of an image speak for a class."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from effnet_jax.errors import UserError, check_choice
from effnet_jax.models.network import Network

METHODS = ("cam", "gradcam", "layercam", "occlusion")
POSITIONS = 14  # Of the occlusion window along each side. The window has a fourth of the side.


def layers(model: Network) -> list[str]:
    """Returns the names of the features that have a map, in the order of the network."""
    spec = model.architecture
    stages = [f"stage{number}" for number in range(1, len(spec.stages) + 1)]
    return ["stem", *stages, *["head"] * bool(spec.head_filters)]


def check(model: Network, method: str = "cam", layer: str | None = None) -> str:
    """Returns the layer, by default the last; raises UserError for a map that does not exist."""
    check_choice("method", method, METHODS)
    names = layers(model)
    if layer not in (None, *names):
        raise UserError(f"unknown layer {layer!r}; this network has: {', '.join(names)}")
    if layer and method == "occlusion":
        raise UserError(f"method occlusion covers parts of the image; leave out layer {layer}")
    if method == "cam" and layer not in (None, names[-1]):
        raise UserError(
            f"method cam explains only the last layer, {names[-1]}, which the classifier sees; "
            f"for {layer} choose layercam or gradcam"
        )
    return layer or names[-1]


def maps(
    model: Network,
    variables: dict,
    images: jax.Array,
    classes: jax.Array,
    method: str = "cam",
    layer: str | None = None,
) -> jax.Array:
    """Computes maps that show how much each position of an image speaks for a class.

    The methods:
      cam: the features of the last layer times the classifier's weights for the class. Values are
        positive and negative; the mean of a map plus the classifier's bias is the logit.
        Zhou et al., arXiv 1512.04150.
      gradcam: each channel of the features times the mean gradient of the logit over all positions,
        summed over channels. Negative sums are set to 0. Selvaraju et al., arXiv 1610.02391.
      layercam: the features times the positive part of the gradient at each position, summed over
        channels. Negative sums are set to 0. It is sharper than gradcam in early layers.
        Jiang et al., IEEE TIP 2021, doi 10.1109/TIP.2021.3089943.
      occlusion: how much the probability of the class falls when a window with a fourth of the
        image's sides is set to 0, the mean colour. The window has 14 x 14 positions, so a map costs
        as much as 197 predictions. Zeiler and Fergus, arXiv 1311.2901.

    Args:
      model: network from `models.build`.
      variables: the "params" and "batch_stats" of the network.
      images: normalised images, float [N, H, W, 3].
      classes: labels, int [N], or [N, K] for K maps of each image.
      method: one of `METHODS`.
      layer: one of `layers(model)`; None means the last.

    Returns:
      float32 [N, h, w], or [N, K, h, w]; h and w are those of the layer, or 14 for occlusion. Each
      row and column covers an equal share of the image.

    Raises:
      UserError: unknown method or layer, a layer that the method can't explain, or classes of the
        wrong shape or out of range. Inside `jax.jit` the range is not checked.
    """
    layer = check(model, method, layer)
    classes = jnp.asarray(classes)
    if classes.ndim not in (1, 2) or classes.shape[0] != images.shape[0]:
        wanted = f"[{images.shape[0]}] or [{images.shape[0]}, K]"
        raise UserError(f"classes must be of shape {wanted}; got {list(classes.shape)}")
    outputs = variables["params"]["classifier"]["kernel"].shape[-1]
    # NumPy, because inside jit JAX also traces operations on arrays that are known.
    numbers = () if isinstance(classes, jax.core.Tracer) else np.asarray(classes).ravel()
    if not all(0 <= number < outputs for number in numbers):
        raise UserError(f"classes must be 0 to {outputs - 1}; got {classes.tolist()}")
    result = _maps(model, variables, images, jnp.atleast_2d(classes.T).T, method, layer)
    return result if classes.ndim == 2 else result[:, 0]


@functools.partial(jax.jit, static_argnames=("model", "method", "layer"))
def _maps(model, variables, images, classes, method, layer):
    """Computes `maps` for classes [N, K] and a layer from `check`."""
    if method == "occlusion":
        return _occlusion(model, variables, images, classes)
    if method == "cam":
        _, features = model.apply(variables, images, train=False)
        weights = variables["params"]["classifier"]["kernel"].T[classes]
        return jnp.einsum("nhwc,nkc->nkhw", features[layer].astype(jnp.float32), weights)
    features, slopes = _slopes(model, variables, images, classes, layer)
    is_mean = method == "gradcam"
    weights = jnp.mean(slopes, (2, 3), keepdims=True) if is_mean else nn.relu(slopes)
    return nn.relu(jnp.sum(features[:, None] * weights, -1))


def _slopes(model, variables, images, classes, layer):
    """Returns features [N, h, w, C], and gradients of the logits [N, K, h, w, C]; float32."""

    def is_layer(module, _=None):
        return module.path == (layer,)

    _, kept = model.apply(
        variables, images, train=False, mutable="intermediates", capture_intermediates=is_layer
    )
    (features,) = kept["intermediates"][layer]["__call__"]

    def rest(features):
        """Returns the logits; the compiler removes the layers before the features as unused."""

        def replace(call, args, kwargs, context):
            output = call(*args, **kwargs)
            return features if is_layer(context.module) else output

        with nn.intercept_methods(replace):
            return model.apply(variables, images, train=False)[0]

    logits, gradient = jax.vjp(rest, features)
    chosen = jax.nn.one_hot(classes.T, logits.shape[-1], dtype=logits.dtype)
    slopes = jax.vmap(lambda each: gradient(each)[0], out_axes=1)(chosen)
    return features.astype(jnp.float32), slopes.astype(jnp.float32)


def _occlusion(model, variables, images, classes):
    """Computes `maps` by occlusion for classes [N, K]."""

    def probabilities(images):
        logits = model.apply(variables, images, train=False)[0]
        return jnp.take_along_axis(jax.nn.softmax(logits), classes, 1)

    def covered(side):
        """Returns the pixels of a side that each position covers, bool [POSITIONS, side]."""
        centres = (jnp.arange(POSITIONS) + 0.5) * side / POSITIONS
        return jnp.abs(jnp.arange(side) + 0.5 - centres[:, None]) < max(side / 8, 0.5)

    def at(position):
        window = rows[position // POSITIONS, :, None] & columns[position % POSITIONS]
        return probabilities(jnp.where(window[..., None], 0, images))

    rows, columns = map(covered, images.shape[1:3])
    left = jax.lax.map(at, jnp.arange(POSITIONS**2)).reshape(POSITIONS, POSITIONS, *classes.shape)
    return (probabilities(images) - left).transpose(2, 3, 0, 1)
