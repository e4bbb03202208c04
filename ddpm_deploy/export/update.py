"""One row of a plan as ONNX nodes.

Sums of products in float32, no matrix product: runtimes round those under a bf16 hint or TF32, elementwise arithmetic
they leave alone. A zero coefficient still multiplies its column, so columns must be finite: noise that no row draws is
to be given as zeros, and a prediction that is not finite is for the caller to find (`finite` of the step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

from ddpm_deploy.export.nodes import Nodes

MAX_EXPONENT = 80.0  # of e, in float32: a variance beyond it is nonsense, but must not turn 0 x z into NaN
COLUMNS = ("d", "m", "z")


def split_tables(
    nodes: Nodes, tables: Mapping[str, str], *, lead: int, rank: int, state_size: int | None
) -> dict[str, str]:
    """Each coefficient of the plan's tables as a tensor of its own, broadcastable to the images that it multiplies.

    tables: names of `predict`, `clip`, `update` and, if there is one, `log_variance`, with `lead` axes before those
    of a row. rank: of a sample. state_size: K, or None where it is free; then `state` holds all of M's square part.
    """

    def column(table: str, index: int, axis: int = lead) -> str:
        picked = nodes("Gather", tables[table], nodes.integers(index), axis=axis)
        return nodes("Unsqueeze", picked, nodes.integers(range(axis, axis + rank)))

    names = {"p_x": ("predict", 0), "p_m": ("predict", 1), "lower": ("clip", 0), "upper": ("clip", 1)}
    if "log_variance" in tables:
        names |= {"small": ("log_variance", 0), "large": ("log_variance", 1)}
    coefficients = {name: column(*source) for name, source in names.items()}
    first = -3 if state_size is None else state_size
    coefficients |= {name: column("update", first + i, lead + 1) for i, name in enumerate(COLUMNS)}
    if state_size is not None:
        return coefficients | {f"state_{k}": column("update", k, lead + 1) for k in range(state_size)}
    square = nodes("Slice", tables["update"], *(nodes.integers([i]) for i in (0, -3, lead + 1)))
    return coefficients | {"state": nodes("Unsqueeze", square, nodes.integers([lead + 2]))}


def current(nodes: Nodes, state: str, output: str | None = None) -> str:
    """The network's input, or after the last row the sample: image 0 of the state (B, K, *S)."""
    return nodes("Gather", state, nodes.integers(0), axis=1, output=output)


def next_state(
    nodes: Nodes, state: str, x: str, m: str, z: str, row: Mapping[str, str], state_size: int | None
) -> tuple[str, str]:
    """Apply one row: the next state (B, K, *S) and the predicted clean image (B, *S).

    m: the network's output, with a learned variance twice the channels. z: broadcastable to (B, *S).
    row: the coefficients that `split_tables` gives.
    """
    if "large" in row:
        m, v = halves(nodes, m)
        z = nodes("Mul", z, deviation(nodes, v, row["small"], row["large"]))
    d = weighted_sum(nodes, [x, m], [row["p_x"], row["p_m"]])
    d = nodes("Min", nodes("Max", d, row["lower"]), row["upper"])
    kept = _kept(nodes, state, row, state_size)
    fresh = [nodes("Unsqueeze", column, nodes.integers([1])) for column in (d, m, z)]
    return nodes("Add", kept, weighted_sum(nodes, fresh, [row[name] for name in COLUMNS])), d


def halves(nodes: Nodes, m: str) -> list[str]:
    """The prediction and the interpolation of its log variance, each (B, *S)."""
    return nodes.several("Split", [m], 2, axis=1, num_outputs=2)


def deviation(nodes: Nodes, v: str, small: str, large: str) -> str:
    """What scales z: the log variance interpolated per pixel (Nichol & Dhariwal 2021, eq. 15)."""
    half = nodes.number(0.5)
    f = nodes("Mul", nodes("Add", v, nodes.number(1)), half)
    rest = nodes("Sub", nodes.number(1), f)
    exponent = nodes("Mul", weighted_sum(nodes, [f, rest], [large, small]), half)
    return nodes("Exp", nodes("Min", exponent, nodes.number(MAX_EXPONENT)))


def weighted_sum(nodes: Nodes, columns: Sequence[str], factors: Sequence[str]) -> str:
    """Products added from left to right, as the numpy loop does."""
    products = [nodes("Mul", column, factor) for column, factor in zip(columns, factors, strict=True)]
    return reduce(lambda a, b: nodes("Add", a, b), products)


def _kept(nodes: Nodes, state: str, row: Mapping[str, str], state_size: int | None) -> str:
    """The part of the next state (B, K, *S) that comes from the present one."""
    if state_size is None:
        # Flat, as OpenVINO computes the sum of a product of rank 7 wrongly inside of a loop.
        flat = nodes("Reshape", state, nodes.integers([0, 0, -1]))
        product = nodes("Mul", nodes("Unsqueeze", flat, nodes.integers([1])), row["state"])
        total = nodes("ReduceSum", product, nodes.integers([2]), keepdims=0)
        return nodes("Reshape", total, nodes("Shape", state))
    images = [nodes("Gather", state, nodes.integers([k]), axis=1) for k in range(state_size)]
    return weighted_sum(nodes, images, [row[f"state_{k}"] for k in range(state_size)])
