"""``compile: true``: the UNet and ControlNets through ``torch.compile``, with shapes that few batches change.

Graphs are compiled for exact shapes (``dynamic=False``), so rows are padded up to 1, 2, 4, 8, 16 ... and strengths are
tensors. Guidance, sigmas, seeds, strengths and counts up to the next bucket never compile again. Another latent size,
text length or set of LoRA files does, and so does the first batch with a ControlNet or with image prompts in other
blocks, at the start of a window or after its end. LoRAs are never merged then: the graph has them beside the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from claygraph.memory import Memory

T = TypeVar("T")
BACKEND = "inductor"
GRAPHS = 64
"""How many graphs of one network are kept: sizes of batch times sizes of picture."""


def fast(network: Any, memory: Memory) -> Any:
    """The network itself or, with ``memory.compile``, compiled at its first use for each set of shapes."""
    if not memory.compile:
        return network
    kept = network.__dict__
    if "claygraph_compiled" not in kept:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        torch._dynamo.config.skip_nnmodule_hook_guards = False  # a LoRA that is attached later is such a hook
        kept["claygraph_compiled"] = torch.compile(network, dynamic=False, backend=BACKEND)
    return kept["claygraph_compiled"]


def padded(rows: Sequence[T]) -> list[T]:
    """The rows, the last one again and again, up to the next power of two."""
    size = 1 << (len(rows) - 1).bit_length()
    return [*rows, *[rows[-1]] * (size - len(rows))]
