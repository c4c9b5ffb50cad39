"""One training loop for every part: time budget, warm-up and decay, averaged weights, checkpoints to resume from."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from claygraph.miniature.muon import Muon

SAVE_EVERY = 60.0  # seconds
MATRICES = 5.5
"""Muon's rate for one of AdamW's."""


class Group(NamedTuple):
    """Parameters with their peak learning rate; `muon` for the matrices of an inner layer."""

    parameters: Sequence[nn.Parameter]
    rate: float
    muon: bool = False


def device() -> torch.device:
    """CUDA when present, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half() -> contextlib.AbstractContextManager[object]:
    """bfloat16 autocast on the training device (a third faster here, same loss)."""
    return torch.autocast(device().type, torch.bfloat16)


class Trainer:
    """Trains parameter groups (each with its peak learning rate) of `module` and keeps their moving average."""

    def __init__(self, file: Path, module: nn.Module, groups: Sequence[Group], decay: float = 0.998) -> None:
        self.file, self.decay = file, decay
        chosen = {id(p) for group in groups for p in group.parameters if p.requires_grad}
        self.named = {n: p for n, p in module.named_parameters() if id(p) in chosen}
        self.average = {n: p.detach().clone() for n, p in self.named.items()}
        self.optimisers = _optimisers(groups)
        self.peaks = [[g["lr"] for g in o.param_groups] for o in self.optimisers]
        self.step, self.elapsed = 0, 0.0

    def run(self, loss_of: Callable[[float], torch.Tensor], minutes: float, max_steps: int | None = None) -> None:
        """Train for `minutes` of this thread's time (over all resumed runs) or `max_steps`, then use the average.

        `loss_of` gets the progress, 0..1, and draws its own batch.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.resume()
        budget, recent = minutes * 60, list[float]()
        begun = saved = time.thread_time()
        before = self.elapsed
        while self.elapsed < budget and (max_steps is None or self.step < max_steps):
            recent.append(self._update(loss_of, self.elapsed / budget))
            now = time.thread_time()
            self.elapsed = before + now - begun
            if self.step % 100 == 0:
                self._tell(sum(recent) / len(recent))
                recent.clear()
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
        self.save()
        self.use_average()

    def _tell(self, loss: float) -> None:
        print(f"{self.file.stem} step {self.step} {self.elapsed:.0f}s loss {loss:.4f}", flush=True)
        with self.file.with_suffix(".losses").open("a") as file:
            file.write(f"{self.step} {loss:.5f}\n")

    def _update(self, loss_of: Callable[[float], torch.Tensor], progress: float) -> float:
        factor = min(1.0, (self.step + 1) / 60) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))))
        for optimiser, peaks in zip(self.optimisers, self.peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
        loss = loss_of(progress)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(list(self.named.values()), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        weight = 1 - min(self.decay, (self.step + 1) / (self.step + 20))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.named.values()], weight)
        return float(loss.detach())

    def use_average(self) -> None:
        """Copy the averaged weights into the module."""
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(self.average[name])

    def save(self) -> None:
        """Write weights, average and optimiser state beside the old file, then swap."""
        tensors = {f"model.{n}": p.detach().contiguous() for n, p in self.named.items()}
        tensors |= {f"average.{n}": p.contiguous() for n, p in self.average.items()}
        for name, parameter in self.named.items():
            state = self._optimiser_of(parameter).state.get(parameter, {})
            tensors |= {f"{key}.{name}": state[key].contiguous() for key in ("exp_avg", "exp_avg_sq") if key in state}
        part = self.file.with_suffix(".part")
        save_file(tensors, part, {"progress": json.dumps({"step": self.step, "elapsed": self.elapsed})})
        part.rename(self.file)

    def resume(self) -> None:
        """Continue from the file if there is one."""
        if not self.file.exists():
            return
        with safe_open(self.file, "pt") as stored, torch.no_grad():
            progress = json.loads(stored.metadata()["progress"])
            self.step, self.elapsed = progress["step"], progress["elapsed"]
            for name, parameter in self.named.items():
                parameter.copy_(stored.get_tensor(f"model.{name}"))
                self.average[name].copy_(stored.get_tensor(f"average.{name}"))
                if f"exp_avg.{name}" in stored.keys():  # noqa: SIM118
                    self._optimiser_of(parameter).state[parameter] = self._moments(stored, name, parameter)

    def _moments(self, stored: Any, name: str, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        kinds = [k for k in ("exp_avg", "exp_avg_sq") if f"{k}.{name}" in stored.keys()]  # noqa: SIM118
        moments = {kind: stored.get_tensor(f"{kind}.{name}").to(parameter.device) for kind in kinds}
        return {"step": torch.tensor(float(self.step)), **moments}

    def _optimiser_of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        held = (o for o in self.optimisers for g in o.param_groups if any(p is parameter for p in g["params"]))
        return next(held)


def _optimisers(groups: Sequence[Group]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of groups that want it, AdamW for all else."""
    matrices = [([p for p in g.parameters if g.muon and p.ndim > 1], g.rate * MATRICES) for g in groups]
    others = [([p for p in g.parameters if not (g.muon and p.ndim > 1)], g.rate) for g in groups]
    made: list[torch.optim.Optimizer] = []
    for kind, wanted in ((Muon, matrices), (torch.optim.AdamW, others)):
        sets = [{"params": parameters, "lr": rate} for parameters, rate in wanted if parameters]
        if sets:
            settings = {"lr": 0.0} if kind is Muon else {"betas": (0.9, 0.99), "weight_decay": 1e-4}
            made.append(kind(sets, **settings))
    return made


def load_average(file: Path, module: nn.Module, prefix: str = "") -> None:
    """Put a checkpoint's averaged weights, those under `prefix`, into the module's parameters of the same names."""
    parameters = dict(module.named_parameters())
    with safe_open(file, "pt") as stored, torch.no_grad():
        for key in stored.keys():  # noqa: SIM118
            name = key.removeprefix(f"average.{prefix}")
            if name != key and name in parameters:
                parameters[name].copy_(stored.get_tensor(key))
