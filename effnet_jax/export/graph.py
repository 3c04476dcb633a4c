"""Translation of a network's jaxpr to an ONNX graph.

ONNX's convolutions need tensors [N, C, h, w], where JAX has [N, h, w, C]. So matrix products become
1x1 convolutions, and reshapes between [N, 1, 1, C] and [N, C] disappear.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

from effnet_jax.errors import UserError

CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
CHANNELS_LAST = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO and NHWC in JAX.


@dataclasses.dataclass
class Node:
    """An ONNX operation; inputs that are constants are in `Graph.constants`."""

    op: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor [N, C, h, w] of the graph; its `shape` is (N, h, w, C), where N may be symbolic."""

    name: str
    shape: tuple

    def stands_for(self, shape: tuple) -> bool:
        """Whether a JAX array of this shape has the same values in the same order."""
        *places, channels = self.shape
        return shape in (self.shape, (math.prod(places), channels))


class Graph:
    """An ONNX graph: nodes in order of execution, and constants by name."""

    def __init__(self):
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names = collections.Counter()
        self._areas = {}  # Number of positions that a sum is over, by its name.

    def _name(self, base: str) -> str:
        self._names[base] += 1
        return f"{base}_{self._names[base]}" if self._names[base] > 1 else base

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a constant, and returns its name."""
        name = self._name(name)
        self.constants[name] = value
        return name

    def add(self, where: str, op: str, inputs: list[str], shape: tuple, **attributes) -> Tensor:
        """Adds a node, and returns its output."""
        output = self._name(f"{where}/{op}")
        self.nodes.append(Node(op, inputs, output, attributes))
        return Tensor(output, shape)

    def convolve(self, where: str, x: Tensor, kernel: np.ndarray, shape: tuple, **attributes):
        """Adds a convolution with a kernel [h, w, inputs, outputs] and a bias of 0."""
        kernel = np.asarray(kernel).transpose(3, 2, 0, 1)
        inputs = [x.name, self.constant(f"{where}/kernel", kernel)]
        inputs.append(self.constant(f"{where}/bias", np.zeros(len(kernel), np.float32)))
        return self.add(where, "Conv", inputs, shape, **attributes)

    def sum(self, where: str, x: Tensor) -> Tensor:
        """Adds a sum over all positions."""
        batch, h, w, channels = x.shape
        inputs = [x.name, self.constant(f"{where}/axes", np.array([2, 3]))]
        total = self.add(where, "ReduceSum", inputs, (batch, 1, 1, channels), keepdims=1)
        self._areas[total.name] = h * w
        return total

    def translate(self, jaxpr: core.Jaxpr, constants: Sequence, arguments: Sequence, place: str):
        """Adds the equations of a jaxpr, and returns its outputs.

        Constants and arguments are tensors or arrays. Equations of arrays alone are evaluated.
        Raises UserError for an operation that has no translation.
        """
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

        def value(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            inputs = [value(atom) for atom in equation.invars]
            where = "/".join(filter(None, (place, str(equation.source_info.name_stack))))
            if equation.primitive.name in CALLS:
                inner = equation.params[CALLS[equation.primitive.name]]
                outputs = self.translate(inner.jaxpr, inner.consts, inputs, where)
            elif any(isinstance(each, Tensor) for each in inputs):
                outputs = [self._translate(equation, inputs, where)]
            else:
                outputs = equation.primitive.bind(*inputs, **equation.params)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
            values.update(zip(equation.outvars, outputs, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _translate(self, equation: core.JaxprEqn, inputs: list, where: str) -> Tensor:
        rule = RULES.get(equation.primitive.name)
        output = rule and rule(self, where, equation, *inputs)
        if not output or not output.stands_for(equation.outvars[0].aval.shape):
            shapes = ", ".join(str(atom.aval) for atom in equation.invars)
            raise UserError(
                f"ONNX: no translation of JAX's operation {equation.primitive.name!r} of {shapes} "
                f"in {where}; export to a .stablehlo file, which can have any operation"
            )
        return output

    def merge(self) -> None:
        """Merges nodes into their predecessors where this does not change the outputs."""
        uses = collections.Counter(name for node in self.nodes for name in node.inputs)
        producers, renamed, kept = {}, {}, []
        for node in self.nodes:
            node.inputs = [renamed.get(name, name) for name in node.inputs]
            before = producers.get(node.inputs[0])
            if before and uses[before.output] == 1 and self._merge(before, node):
                renamed[node.output] = before.output
                uses[before.output] = uses[node.output]
            else:
                producers[node.output] = node
                kept.append(node)
        self.nodes = kept

    def _merge(self, before: Node, node: Node) -> bool:
        """Makes `before` compute `node` as well; returns whether this is possible."""
        constant = self.constants.get(node.inputs[-1])
        if constant is None:
            return False
        if before.op == "Conv" and node.op == "Add":
            bias = before.inputs[2]
            self.constants[bias] = self.constants[bias] + constant.ravel()
        elif before.op == "ReduceSum" and node.op == "Div":
            if constant.ravel().tolist() != [self._areas[before.output]]:
                return False
            before.op = "ReduceMean"
        elif before.op == "Relu" and node.op == "Min" and constant.size == 1:
            before.op, zero = "Clip", self.constant("zero", np.float32(0))
            before.inputs += [zero, node.inputs[-1]]
        else:
            return False
        return True


# Each rule takes a graph, the place in the network, an equation and its inputs, and returns the
# output, or None if there is no translation.


def convolution(graph: Graph, where: str, equation, x: Tensor, kernel: Any) -> Tensor | None:
    params = equation.params
    numbers = params["dimension_numbers"]
    specs = tuple(map(tuple, (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)))
    known = isinstance(x, Tensor) and not isinstance(kernel, Tensor)
    plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) == {1}
    if not known or not plain or specs != CHANNELS_LAST:
        return None
    (top, bottom), (left, right) = params["padding"]
    return graph.convolve(
        where,
        x,
        kernel,
        equation.outvars[0].aval.shape,
        strides=params["window_strides"],
        pads=(top, left, bottom, right),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )


def product(graph: Graph, where: str, equation, x: Tensor, kernel: Any) -> Tensor | None:
    (contracted, of_kernel), batched = equation.params["dimension_numbers"]
    last = equation.invars[0].aval.ndim - 1
    if isinstance(kernel, Tensor) or np.ndim(kernel) != 2 or any(batched):
        return None
    if (tuple(contracted), tuple(of_kernel)) != ((last,), (0,)):
        return None
    kernel = np.asarray(kernel)[None, None]
    return graph.convolve(where, x, kernel, (*x.shape[:-1], kernel.shape[-1]))


def elementwise(op: str, graph: Graph, where: str, equation, *inputs: Any) -> Tensor | None:
    """Translates to `op`; constants are scalars or have one value per channel."""
    tensors = [each for each in inputs if isinstance(each, Tensor)]
    shape, names = tensors[0].shape, []
    if len(tensors) == 2:
        sides = zip(*(each.shape for each in tensors), strict=True)
        shape = tuple(a if b == 1 else b for a, b in sides)
    for each in inputs:
        if isinstance(each, Tensor):
            names.append(each.name)
            continue
        each = np.asarray(each)
        if each.size != 1 and (each.size != shape[-1] or each.shape[-1] != shape[-1]):
            return None
        by_channel = each.reshape(() if each.size == 1 else (1, -1, 1, 1))
        names.append(graph.constant(f"{where}/constant", by_channel))
    if op in ("Add", "Mul", "Max", "Min") and inputs[0] is not tensors[0]:
        names.reverse()  # Puts the constant second.
    if op == "Max" and names[1] in graph.constants and not graph.constants[names[1]].any():
        op, names = "Relu", names[:1]
    return graph.add(where, op, names, shape)


def total(graph: Graph, where: str, equation, x: Tensor) -> Tensor | None:
    over_places = equation.invars[0].aval.ndim == 4 and equation.params["axes"] == (1, 2)
    return graph.sum(where, x) if over_places else None


def max_pool(graph: Graph, where: str, equation, x: Tensor) -> Tensor | None:
    params = equation.params
    batch, *window, channels = params["window_dimensions"]
    before, after = zip(*params["padding"], strict=True)
    dilations = {*params["base_dilation"], *params["window_dilation"]}
    others = {batch, channels, *(params["window_strides"][axis] for axis in (0, -1)), *dilations}
    if others != {1} or (before[0], before[-1], after[0], after[-1]) != (0, 0, 0, 0):
        return None
    return graph.add(
        where,
        "MaxPool",
        [x.name],
        equation.outvars[0].aval.shape,
        kernel_shape=window,
        strides=params["window_strides"][1:-1],
        pads=(*before[1:-1], *after[1:-1]),
    )


def same_numbers(graph: Graph, where: str, equation, x: Tensor) -> Tensor:
    return x


def cast(graph: Graph, where: str, equation, x: Tensor) -> Tensor | None:
    old, new = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    if new != np.float32:
        return None
    return x if old == new else graph.add(where, "Cast", [x.name], x.shape, to=1)


RULES = {
    "conv_general_dilated": convolution,
    "dot_general": product,
    "reduce_sum": total,
    "reduce_window_max": max_pool,
    "convert_element_type": cast,
    **dict.fromkeys(("reshape", "squeeze", "broadcast_in_dim", "stop_gradient"), same_numbers),
    "logistic": functools.partial(elementwise, "Sigmoid"),
    "add": functools.partial(elementwise, "Add"),
    "sub": functools.partial(elementwise, "Sub"),
    "mul": functools.partial(elementwise, "Mul"),
    "div": functools.partial(elementwise, "Div"),
    "max": functools.partial(elementwise, "Max"),
    "min": functools.partial(elementwise, "Min"),
}
