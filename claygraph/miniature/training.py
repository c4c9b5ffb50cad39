"""One training loop for every part: time budget, warm-up and decay, averaged weights, checkpoints to resume from."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

Group = tuple[Sequence[nn.Parameter], float]
SAVE_EVERY = 60.0  # seconds


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
        chosen = {id(p) for group, _ in groups for p in group}
        self.named = {n: p for n, p in module.named_parameters() if id(p) in chosen}
        self.average = {n: p.detach().clone() for n, p in self.named.items()}
        self.peaks = [rate for _, rate in groups]
        parameters = [{"params": list(group)} for group, _ in groups]
        self.optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-4)
        self.step, self.elapsed = 0, 0.0

    def run(self, loss_of: Callable[[float], torch.Tensor], minutes: float, max_steps: int | None = None) -> None:
        """Train for `minutes` of this thread's time (over all resumed runs) or `max_steps`, then use the average.

        `loss_of` gets the progress, 0..1, and draws its own batch.
        """
        self.resume()
        budget, recent = minutes * 60, list[float]()
        begun = saved = time.thread_time()
        before = self.elapsed
        while self.elapsed < budget and (max_steps is None or self.step < max_steps):
            recent.append(self._update(loss_of, self.elapsed / budget))
            now = time.thread_time()
            self.elapsed = before + now - begun
            if self.step % 100 == 0:
                mean = sum(recent) / len(recent)
                print(f"{self.file.stem} step {self.step} {self.elapsed:.0f}s loss {mean:.4f}", flush=True)
                recent.clear()
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
        self.save()
        self.use_average()

    def _update(self, loss_of: Callable[[float], torch.Tensor], progress: float) -> float:
        factor = min(1.0, (self.step + 1) / 60) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))))
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        loss = loss_of(progress)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(list(self.named.values()), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
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
            state = self.optimiser.state.get(parameter, {})
            tensors |= {f"{key}.{name}": state[key].contiguous() for key in ("exp_avg", "exp_avg_sq") if key in state}
        self.file.parent.mkdir(parents=True, exist_ok=True)
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
                    self.optimiser.state[parameter] = self._moments(stored, name, parameter)

    def _moments(self, stored: Any, name: str, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        first, second = (stored.get_tensor(f"{k}.{name}").to(parameter.device) for k in ("exp_avg", "exp_avg_sq"))
        return {"step": torch.tensor(float(self.step)), "exp_avg": first, "exp_avg_sq": second}


def load_average(file: Path, module: nn.Module) -> None:
    """Put the averaged weights of a checkpoint into the module's parameters of the same names."""
    parameters = dict(module.named_parameters())
    with safe_open(file, "pt") as stored, torch.no_grad():
        for key in stored.keys():  # noqa: SIM118
            if key.startswith("average."):
                parameters[key.removeprefix("average.")].copy_(stored.get_tensor(key))
