"""Which operator was the first to make a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from ddpm_deploy.export.anatomy import lift_constants, name_nodes
from ddpm_deploy.export.emulate import emulate
from ddpm_deploy.export.evaluate import reductions
from ddpm_deploy.export.half import tensor_types
from ddpm_deploy.export.weights import copied


def first_nonfinite(
    model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]], threads: int | None = None
) -> str | None:
    """Name, operator and output of the first node whose output is not finite; None where all are.

    The graph may be in any precision: fp16 and bf16 are emulated. Only one number is kept of each tensor, so this
    takes no more memory than the graph itself. The inside of a Scan or Loop is not looked at, what comes out of it is.
    """
    for name, array in feeds.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(f"feeds[{name!r}]: expected finite numbers; the graph is not at fault")
    named = copied(model)
    lift_constants(named.graph)
    name_nodes(named.graph)
    wide = emulate(named)
    types = tensor_types(wide)
    makers = {name: node for node in named.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT}
    with reductions(wide, list(makers), ["Difference"], threads) as run:
        figures = run(feeds)
    for name, node in makers.items():
        if not np.isfinite(figures[name][0]):
            return f"{node.name} ({node.op_type}), output {name}"
    return None
