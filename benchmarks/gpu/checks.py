"""What must hold on a device: it computes what the CPU computes, and its passes agree with each other.

Every check takes a device and a folder to work in, says in words what it compared and how near it came, and
raises ``Failed`` where that is not near enough. On the CPU they hold as well; that is how they are tested.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import RandomWindows, model
from benchmarks.measure import ROOT
from benchmarks.projects import RUN_STAGES, STAGES, environment, set_params
from benchmarks.routing import random_exits
from offramp.artifacts.artifact import open_artifact
from offramp.errors import UserError
from offramp.machine.device import require_precision
from offramp.models.native import BlockwiseLM
from offramp.params import Collect, Pretrain, read_params
from offramp.routing.decoder import Decoder
from offramp.routing.executor import Arrivals, Decision, Executor, Policy, Routed
from offramp.routing.policies import GivenExits
from offramp.states.collect import collect_states
from offramp.states.statistics import STATISTICS
from offramp.states.store import States
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots

KV = ("propagate", "recompute", "drop")
WINDOW, VOCAB, BATCH = 64, 512, 16
LOSS_TOLERANCE = 2e-4
"""Nats by which two fp32 passes may differ that sum in another order."""
STATE_TOLERANCE = 2e-3
"""By which stored float16 states may differ, relative to the largest: two roundings of float16."""
UNDECIDED = 1e-3
"""Scores nearer to the threshold than this may fall on either side of it."""


class Failed(Exception):
    """A check does not hold; the message says what differs."""


def small_model() -> BlockwiseLM:
    """Four layers in three blocks; weights far from their initial values, so that every part matters."""
    lm = model(VOCAB, WINDOW, 128, 4, 256, (1, 1, 2))
    torch.manual_seed(1)
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.1)
    return lm


class ScorePolicy(Policy):
    """Leave where a fixed linear score of the state is positive; its value is the confidence."""

    def __init__(self, lm: BlockwiseLM):
        weights = torch.randn(
            lm.config.num_blocks, lm.config.width, generator=torch.Generator().manual_seed(2)
        )
        self.weights = weights.to(lm.cos.device)

    def decide(self, arrivals: Arrivals) -> Decision:
        score = arrivals.states @ self.weights[arrivals.exit]
        return Decision(score > 0, score)


class RecordedScores(ScorePolicy):
    """Also keeps the smallest distance of each token's scores to the threshold, (B * T,)."""

    def __init__(self, lm: BlockwiseLM, tokens: int):
        super().__init__(lm)
        self.nearest = torch.full((tokens,), torch.inf, device=lm.cos.device)

    def decide(self, arrivals: Arrivals) -> Decision:
        decision = super().decide(arrivals)
        assert decision.confidence is not None
        before = self.nearest[arrivals.index]
        self.nearest[arrivals.index] = torch.minimum(before, decision.confidence.abs())
        return decision


def routed_equals_cpu(device: torch.device, folder: Path) -> str:
    """Routed passes with exits laid down give the losses of the same passes on the CPU, in every ``kv``."""
    lm, (tokens, targets) = small_model(), windows().batch(torch.arange(BATCH))
    exits, largest = random_exits(tokens.numel(), 0.6), 0.0
    there = copy.deepcopy(lm).to(device)
    for kv in KV:
        wanted = Executor(lm, kv).run(tokens, targets, GivenExits(exits))
        routed = Executor(there, kv).run(tokens.to(device), targets.to(device), GivenExits(exits.to(device)))
        if not torch.equal(routed.exit.cpu(), wanted.exit):
            raise Failed(f"kv {kv}: tokens took other exits than were laid down")
        largest = max(largest, near(f"kv {kv}: losses", routed.loss.cpu(), wanted.loss, LOSS_TOLERANCE))
    return f"{tokens.numel()} tokens, three ways of keys and values: losses within {largest:.1e} nats"


def decoding_equals_one_pass(device: torch.device, folder: Path) -> str:
    """Token by token, on caches, gives the exits and losses of one parallel pass over the same text."""
    lm, (tokens, targets) = small_model().to(device), windows().batch(torch.arange(BATCH))
    tokens, targets, largest, alike = tokens.to(device), targets.to(device), 0.0, 0
    for kv in KV:
        policy = RecordedScores(lm, tokens.numel())
        whole = Executor(lm, kv).run(tokens, targets, policy)
        # a row is compared up to its first token whose score is too near to call: what follows hangs on it
        sure = (policy.nearest.view_as(tokens) > UNDECIDED).cummin(1).values.bool()
        steps = decoded(lm, kv, tokens, targets)
        if not torch.equal(steps.exit[sure], whole.exit[sure]):
            raise Failed(f"kv {kv}: decoding takes other exits than one pass over the same text")
        largest = max(largest, near(f"kv {kv}: losses", steps.loss[sure], whole.loss[sure], LOSS_TOLERANCE))
        if len(whole.exit[sure].unique()) != lm.config.num_blocks:
            raise Failed(f"kv {kv}: not every exit was taken, which shows nothing")
        alike += int(sure.sum())
    return (
        f"{alike} tokens in three ways of keys and values: the same exits, losses within {largest:.1e} nats"
    )


def decoded(lm: BlockwiseLM, kv: str, tokens: Tensor, targets: Tensor) -> Routed:
    """Given text (B, T) fed to a decoder one token of every row at a time."""
    decoder, policy = Decoder(lm, len(tokens), kv), ScorePolicy(lm)
    rows, exits, losses = torch.arange(len(tokens), device=tokens.device), [], []
    for place in range(tokens.shape[1]):
        fed = decoder.feed(rows, tokens[:, place], policy)
        log_p = decoder.logits(fed.exit, fed.states).log_softmax(-1)
        exits.append(fed.exit)
        losses.append(-log_p.gather(1, targets[:, place : place + 1]).squeeze(1))
    return Routed(torch.stack(exits, 1), torch.stack(losses, 1), targets, targets)


def collected_equals_cpu(device: torch.device, folder: Path) -> str:
    """Collected states and statistics are those that the CPU collects."""
    lm, read = small_model(), {}
    settings = Collect(**read_params(ROOT / "params.yaml").collect.model_dump() | {"batch_size": BATCH})
    for place in (torch.device("cpu"), device):
        collected = collect_states(
            copy.deepcopy(lm),
            windows(),
            folder / f"states_{place.type}",
            settings,
            params={},
            inputs={},
            device=place,
        )
        read[place] = States(open_artifact(collected.path, "states"))
    wanted, states = read[torch.device("cpu")], read[device]
    largest = 0.0
    for exit in range(states.num_exits):
        for name in ("loss", *STATISTICS):
            columns = (torch.from_numpy(of.column(f"{name}_{exit}").copy()) for of in (states, wanted))
            largest = max(largest, near(f"{name} at exit {exit}", *columns, 10 * LOSS_TOLERANCE))
        hidden, there = wanted.hidden(exit), states.hidden(exit)
        near(f"states after block {exit}", there, hidden, STATE_TOLERANCE * float(hidden.abs().max()))
    return f"{states.num_tokens} tokens, {states.num_exits} exits: statistics within {largest:.1e}"


class Stopped(Exception):
    """The training was interrupted on purpose."""


class StoppingSnapshots(Snapshots):
    """Snapshots at every step, the last of them at ``stop``, where the training is interrupted."""

    def __init__(self, folder: Path, stop: int):
        super().__init__(folder, 0.0)
        self._left = stop

    def save(self, state: dict[str, Any], returns_to: str | None = None) -> None:
        super().save(state, returns_to)
        self._left -= 1
        if not self._left:
            raise Stopped


def resumed_equals_straight(device: torch.device, folder: Path) -> str:
    """A pretraining that was interrupted in each block ends with the weights of a straight one.

    Where the device's own kernels do not repeat bit for bit, two straight runs differ: then the interrupted
    one may differ as much.
    """
    precision = precision_of(device)
    straight, again = (trained(device, folder / name, precision) for name in ("straight", "again"))
    resumed = trained(device, folder / "resumed", precision, stops=(5, 16))
    noise, difference = distance(straight, again), distance(straight, resumed)
    if difference > 2 * noise:
        raise Failed(f"resumed weights differ by {difference:.1e}, those of two straight runs by {noise:.1e}")
    return f"{precision}: weights differ by {difference:.1e}, those of two straight runs by {noise:.1e}"


def trained(
    device: torch.device, folder: Path, precision: str, stops: tuple[int, ...] = ()
) -> dict[str, Tensor]:
    """The weights after a short block-wise pretraining, interrupted after so many further snapshots each."""
    values = read_params(ROOT / "params.yaml").pretrain.model_dump()
    values |= {"steps": 14, "batch_size": BATCH, "evaluate_every": 7, "evaluate_windows": 8}
    settings = Pretrain(**values | {"precision": precision, "warmup_steps": 2})
    for stop in (*stops, 10**9):
        lm = model(VOCAB, WINDOW, 128, 4, 256, (1, 1), heads_per_exit=settings.head == "per_block")
        held_out = RandomWindows(16, WINDOW, VOCAB, seed=1)
        snapshots = StoppingSnapshots(folder, stop)
        try:
            Pretrainer(lm, windows(), held_out, settings, snapshots, device).run()
        except Stopped:
            continue
        return {name: value.cpu() for name, value in lm.state_dict().items()}
    raise AssertionError("the last training is not interrupted")


REDUCED = {
    "window": 64,
    "corpus.calibration_fraction": 0.02,
    "corpus.test_fraction": 0.02,
    "model.width": 64,
    "model.ffn_width": 128,
    "model.block_layers": [1, 2],
    "pretrain.steps": 120,
    "pretrain.batch_size": 16,
    "pretrain.evaluate_every": 40,
    "pretrain.evaluate_windows": 32,
    "exits.max_epochs": 8,
    "exits.hidden": [32],
    "routing.curve_fractions": [0.5],
    "routing.control_windows": 64,
    "routing.timing_batches": 4,
    "routing.bootstrap": 200,
}
COMPUTING = STAGES[:-1]
"""Stages that compute: all but the one that tracks."""


def small_pipeline(device: torch.device, folder: Path) -> str:
    """All stages but track run on the device, one after the other, on little text with a small model."""
    root, precision = folder / "project", precision_of(device)
    for name in ("src", "pipeline"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    changes = {"runtime.device": device.type, "pretrain.precision": precision, "threshold": "auto"}
    set_params(root / "params.yaml", REDUCED | changes)
    done = subprocess.run(
        [sys.executable, "-c", RUN_STAGES, *COMPUTING],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Failed(f"a stage failed:\n{(done.stdout + done.stderr)[-2000:]}")
    devices = {made_on(root / name) for name in ("models/lm", "states/test", "routed")}
    if not all(name.startswith(device.type) for name in devices):
        raise Failed(f"artifacts were made on {', '.join(sorted(devices))}, not on {device.type}")
    routing = json.loads((root / "metrics/routing.json").read_text(encoding="utf-8"))
    full, shallow = routing["controls"]["full"]["ppl"], routing["controls"]["exit_0"]["ppl"]
    routed = f"{shallow:.1f} at exit 0, routed {routing['ppl']:.1f}"
    return f"{len(COMPUTING)} stages, {precision}; perplexity {full:.1f} at full depth, {routed}"


def made_on(artifact: Path) -> str:
    """The device that an artifact's manifest names."""
    return json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))["made_with"]["device"]


CHECKS = (
    routed_equals_cpu,
    decoding_equals_one_pass,
    collected_equals_cpu,
    resumed_equals_straight,
    small_pipeline,
)


def precision_of(device: torch.device) -> str:
    """bf16 where the device has it, else fp32."""
    try:
        require_precision(device, "bf16", "precision")
    except UserError:
        return "fp32"
    return "bf16"


def windows() -> Any:
    """Random text that stands in for TokenWindows."""
    return RandomWindows(48, WINDOW, VOCAB)


def near(what: str, values: Tensor, wanted: Tensor, tolerance: float) -> float:
    """The largest difference; Failed where it exceeds the tolerance or a value is not finite."""
    largest = float((values - wanted).abs().max()) if values.numel() else 0.0
    if not largest <= tolerance:  # also where it is NaN
        raise Failed(f"{what} differ by {largest:.1e}, which is more than {tolerance:.1e}")
    return largest


def distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest difference between weights of the same names."""
    return max(differences(some, others))


def differences(some: dict[str, Tensor], others: dict[str, Tensor]) -> Iterator[float]:
    for name, weights in some.items():
        yield float((weights.double() - others[name].double()).abs().max())
