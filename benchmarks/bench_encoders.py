"""Bars encoded per second: one pass over a stretch of tape beside one window for every bar, for each encoder.

    python benchmarks/bench_encoders.py
    python benchmarks/bench_encoders.py --device cuda

Setting of every figure: the encoders of ``configs/policy/``, 16 features, width 32, receptive field 63 (the
MLP: 1), embeddings of 8 stretches of 128 bars, one thread, median of interleaved rounds. Both sides run the
same module with the same weights; windows go through it in batches of the size that is fastest for them.
*Train* is forward and backward, *infer* forward without gradients; a ratio is the median of the ratios of
each round. Nothing is shared between accounts here: K accounts on a path multiply a ratio by K.

Parity comes first, on fresh weights, after training, and with long memory forced on recurrences: embeddings
of stretches and windows must agree to 1e-5, the gradients of all weights to 1e-4 of the largest.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from perpgym.experiments.settings import build
from perpgym.policies.config import PolicyConfig
from perpgym.policies.encoders import Encoder, GridRecurrent
from perpgym.policies.market_encoder import ENCODERS, build_market_encoder

FEATURES, STRETCHES, BARS = 16, 8, 128
WINDOW_BATCHES = (32, 128, 512, 1_024)
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CONTRACTS = {"transformer_4_contracts": 4}


@dataclass(frozen=True)
class Contestant:
    """One encoder with its input, as stretches and as the windows of the same bars.

    Attributes:
        encoder: an ``nn.Module``.
        stretch: (8, 128 + R - 1, A * 16).
        stretch_first, window_first: (8,) and (1024,) bars since the epoch of the first bar of each.
        windows: (1024, R, A * 16), in the order of the stretches' bars.
        window_batch: windows that go through the encoder at once.
    """

    encoder: Encoder
    stretch: torch.Tensor
    stretch_first: torch.Tensor
    windows: torch.Tensor
    window_first: torch.Tensor
    window_batch: int = 128

    @classmethod
    def of(cls, encoder: Encoder, n_assets: int, device: torch.device) -> Contestant:
        """Random bars."""
        reach, noise = encoder.receptive_field, torch.Generator().manual_seed(1)
        stretch = torch.randn(STRETCHES, BARS + reach - 1, n_assets * FEATURES, generator=noise).to(device)
        first = 438_291 + 1_000 * torch.arange(STRETCHES, device=device) * 7
        windows = stretch.unfold(1, reach, 1).transpose(2, 3).flatten(0, 1).contiguous()
        window_first = (first.unsqueeze(1) + torch.arange(BARS, device=device)).flatten()
        return cls(encoder, stretch, first, windows, window_first)

    @property
    def module(self) -> nn.Module:
        """The encoder as a module."""
        assert isinstance(self.encoder, nn.Module)
        return self.encoder

    def from_stretches(self) -> list[torch.Tensor]:
        """Embeddings, one (8, 128, D) piece."""
        return [self.encoder.encode(self.stretch, self.stretch_first)]

    def from_windows(self) -> list[torch.Tensor]:
        """The same embeddings in pieces (batch, 1, D)."""
        return [self.encoder.encode(windows, first) for windows, first in self._batches()]

    def train_on_stretches(self) -> None:
        """Forward and backward."""
        self.from_stretches()[0].square().sum().backward()  # type: ignore[no-untyped-call]

    def train_on_windows(self) -> None:
        """Forward and backward, batch by batch; the gradients add up to those of the stretches."""
        for windows, first in self._batches():
            self.encoder.encode(windows, first).square().sum().backward()  # type: ignore[no-untyped-call]

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = self.window_batch
        return zip(self.windows.split(size), self.window_first.split(size), strict=True)


def contestants(device: torch.device) -> dict[str, Contestant]:
    """Every encoder as its config file has it, and one across several contracts."""
    found = {}
    for name in (*ENCODERS, *CONTRACTS):
        torch.manual_seed(0)
        n_assets = CONTRACTS.get(name, 1)
        encoder = build_market_encoder(policy_config(name.partition("_")[0]), FEATURES, n_assets)
        assert isinstance(encoder, nn.Module)
        found[name] = Contestant.of(encoder.to(device), n_assets, device)
    return found


def policy_config(name: str) -> PolicyConfig:
    """``policy=<name>``."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        section = OmegaConf.to_container(compose("config", overrides=[f"policy={name}"]).policy)
    assert isinstance(section, dict)
    return build({str(key): value for key, value in section.items()}, PolicyConfig, "policy")


def check_parity(contestant: Contestant) -> float:
    """Largest difference of embeddings, over fresh, trained and long-remembering weights.

    Raises:
        SystemExit: embeddings or gradients differ by more than is allowed.
    """
    worst = 0.0
    for weights, prepare in (("fresh", None), ("trained", train), ("long memory", lengthen_memory)):
        probe = replace(contestant, encoder=copy.deepcopy(contestant.encoder))
        if prepare is not None:
            prepare(probe)
        with torch.no_grad():
            stretch, windows = probe.from_stretches()[0].flatten(0, 1), torch.cat(probe.from_windows())[:, 0]
        error = float((stretch - windows).abs().max())
        gradient_error = compare_gradients(probe)
        if not (error <= TOLERANCE and gradient_error <= GRADIENT_TOLERANCE):
            raise SystemExit(
                f"{type(contestant.encoder).__name__}, {weights} weights: stretches and windows differ by "
                f"{error:.1e}, allowed are {TOLERANCE:g}, and their gradients by {gradient_error:.1e} of the "
                f"largest, allowed are {GRADIENT_TOLERANCE:g}"
            )
        worst = max(worst, error)
    return worst


def train(contestant: Contestant) -> None:
    """Twenty steps of Adam towards a running mean."""
    optimizer = torch.optim.Adam(contestant.module.parameters(), lr=0.01)
    target = contestant.stretch.cumsum(1).mean(-1, keepdim=True)[:, -BARS:]
    for _ in range(20):
        optimizer.zero_grad()
        (contestant.from_stretches()[0] - target).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def lengthen_memory(contestant: Contestant) -> None:
    """Recurrences keep their state; then a little training."""
    for module in contestant.module.modules():
        if isinstance(module, GridRecurrent):
            module.lengthen_memory(5.0)
    train(contestant)


def compare_gradients(contestant: Contestant) -> float:
    """Largest difference between the gradients of either side, over the largest gradient."""
    gradients = []
    for run in (contestant.train_on_stretches, contestant.train_on_windows):
        contestant.module.zero_grad()
        run()
        present = (p.grad for p in contestant.module.parameters() if p.grad is not None)
        gradients.append(torch.cat([gradient.flatten() for gradient in present]))
    return float((gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max())


def seconds(run: Callable[[], object], device: torch.device, least_s: float) -> float:
    """Seconds a call, over as many as fill ``least_s``."""
    calls, started = 0, time.perf_counter()
    while True:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        calls += 1
        elapsed = time.perf_counter() - started
        if elapsed >= least_s:
            return elapsed / calls


def with_fastest_batch(contestant: Contestant, device: torch.device, least_s: float) -> Contestant:
    """The windows' own best batch size, so that they are not slow for want of one."""
    choices = [replace(contestant, window_batch=size) for size in WINDOW_BATCHES]
    for choice in choices:
        choice.train_on_windows()
    return min(choices, key=lambda choice: seconds(choice.train_on_windows, device, least_s))


def measure(contestant: Contestant, rounds: int, device: torch.device, least_s: float) -> dict[str, float]:
    """Medians over rounds in which both sides take turns, after one of warm-up."""
    contestant = with_fastest_batch(contestant, device, least_s)
    sides = {
        "train": (contestant.train_on_stretches, contestant.train_on_windows),
        "infer": (torch.no_grad()(contestant.from_stretches), torch.no_grad()(contestant.from_windows)),
    }
    figures = {}
    for mode, runs in sides.items():
        times = []
        for number in range(rounds + 1):
            pair = [seconds(run, device, least_s) for run in runs]
            if number > 0:
                times.append(pair)
        ratios = [windows / stretch for stretch, windows in times]
        figures[f"{mode}_ratio"] = statistics.median(ratios)
        figures[f"{mode}_lowest"], figures[f"{mode}_highest"] = min(ratios), max(ratios)
        figures[f"{mode}_bars_per_s"] = STRETCHES * BARS / statistics.median(pair[0] for pair in times)
    return figures


def main() -> None:
    """Parity, then the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="torch's name, e.g. cuda")
    parser.add_argument("--least-seconds", type=float, default=0.3, help="that a side runs in a round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, console = torch.device(arguments.device), Console(width=110)
    entrants, figures = contestants(device), {}
    for name, contestant in entrants.items():
        console.print(f"parity of stretches and windows, {name}: {check_parity(contestant):.1e}")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in progress.track(entrants, description="timing"):
            figures[name] = measure(entrants[name], arguments.rounds, device, arguments.least_seconds)
    console.print(_table(figures))
    console.print(_provenance(device))
    print(json.dumps(_last_line(figures)))


def _table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table("encoder", "train, bars/s", "/ windows", "range", "infer, bars/s", "/ windows", "range")
    for name, row in figures.items():
        cells = []
        for mode in ("train", "infer"):
            cells += [f"{row[f'{mode}_bars_per_s']:,.0f}", f"{row[f'{mode}_ratio']:.1f}x"]
            cells.append(f"{row[f'{mode}_lowest']:.0f}-{row[f'{mode}_highest']:.0f}")
        table.add_row(name, *cells)
    return table


def _provenance(device: torch.device) -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    machine = platform.processor() or platform.machine()
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    return f"commit {commit}; {machine}, torch {torch.__version__}, one thread"


def _last_line(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    line: dict[str, float] = {}
    for name, row in figures.items():
        for mode in ("train", "infer"):
            line[f"{name}_{mode}_stretch_vs_windows"] = round(row[f"{mode}_ratio"], 1)
            line[f"{name}_{mode}_bars_per_s"] = round(row[f"{mode}_bars_per_s"])
    return line


if __name__ == "__main__":
    main()
