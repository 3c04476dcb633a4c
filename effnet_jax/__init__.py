"""EfficientNet (arXiv 1905.11946) in JAX: compound scaling, sharded training, exact resume."""

__version__ = "0.1.0"
