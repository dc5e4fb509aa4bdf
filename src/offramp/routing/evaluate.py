"""Routing on the test split: the measures of early exit, beside the controls that give them meaning."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from offramp.corpus.token_bytes import bits_per_byte
from offramp.corpus.windows import TokenWindows
from offramp.exits.calibration import expected_calibration_error, reliability, resampled_calibration_error
from offramp.exits.ranking import aurc, auroc, loss_gap, most_confident
from offramp.exits.risk import token_risk
from offramp.models.blockwise import Blockwise
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor, Policy, Routed, Work
from offramp.routing.policies import (
    CONTROLS,
    GivenExits,
    NobodyLeaves,
    Scorer,
    ThresholdPolicy,
    control_scores,
    exits_by_share,
)
from offramp.states.resampling import DocumentSums, interval
from offramp.states.store import States


@dataclass
class RoutedSplit:
    """Every token of the windows that were run, in order, and the work it took."""

    exit: np.ndarray
    loss: np.ndarray
    argmax: np.ndarray
    confidence: np.ndarray
    work: Work


def run_split(
    executor: Executor,
    windows: TokenWindows,
    indices: Tensor,
    policy: Policy | None,
    batch_size: int,
    device: torch.device,
    exits: np.ndarray | None = None,
    name: str = "evaluate",
) -> RoutedSplit:
    """Route the windows ``indices``; ``exits`` (windows * T,) lays down every token's exit instead of a policy."""
    work, parts, start = Work(), [], 0
    for batch in tqdm(indices.split(batch_size), desc=name, unit="batch", disable=None):
        tokens, targets = (part.to(device) for part in windows.batch(batch))
        chosen = policy
        if exits is not None:
            chosen = GivenExits(torch.from_numpy(exits[start : start + tokens.numel()]).to(device))
            start += tokens.numel()
        parts.append(executor.run(tokens, targets, chosen, work))
    return RoutedSplit(*(_join(parts, field) for field in ("exit", "loss", "argmax", "confidence")), work)


def _join(parts: list[Routed], field: str) -> np.ndarray:
    return torch.cat([getattr(part, field).flatten().cpu() for part in parts]).numpy()


class Evaluation:
    """All measures of one policy on the test split. Controls run on ``control_windows``, at the signal's own exit shares."""

    def __init__(
        self,
        executor: Executor,
        windows: TokenWindows,
        states: States,
        policy: ThresholdPolicy,
        settings: Any,
        device: torch.device,
        bytes_of_token: np.ndarray,
    ):
        """``bytes_of_token`` (V,): bytes of text each token stands for, see ``corpus.token_bytes``."""
        self.executor, self.windows, self.states, self.policy = executor, windows, states, policy
        self.settings, self.device, self.bytes_of_token = settings, device, bytes_of_token
        self.model = executor.model
        self.last = self.model.config.num_blocks - 1
        self.target, self.document = states.column("target"), states.column("document")
        self.free = states.column("position") >= settings.keep_first
        self.cached = [
            {name: states.column(f"{name}_{exit}") for name in ("loss", "argmax")}
            for exit in range(self.last + 1)
        ]
        self.scores = policy.scorer.on_cached(states)
        self.routed = run_split(
            executor, windows, torch.arange(len(windows)), policy, settings.batch_size, device
        )

    def measures(self) -> dict[str, Any]:
        """The contents of metrics/routing.json, without inputs and threshold.

        ``ece``, ``auroc``, ``aurc``, ``loss_gap`` and ``oracle_share`` judge the confidence of the first exit, where every
        token is asked; auroc and aurc as a ranking of "leaving here is right" (agrees with full depth), since calibrated
        scores can still rank badly.
        """
        routed, full = self.routed, self.cached[self.last]
        first = self.scores[0]
        easy, true_easy = (
            most_confident(first, len(first) // 2),
            most_confident(-self.cached[0]["loss"], len(first) // 2),
        )
        gap = loss_gap(easy, self.cached[0]["loss"])
        sums = DocumentSums(
            self.document,
            {
                "loss": routed.loss,
                "full": full["loss"],
                "correct": routed.argmax == self.target,
            },
        )
        draws = sums.resample(self.settings.bootstrap, self.settings.seed)
        flops = executed_flops(self.model, routed.work, self.policy.flops_per_token)
        mixture = np.take_along_axis(
            np.stack([exit["loss"] for exit in self.cached]), routed.exit[None], axis=0
        )[0]
        agrees = self.cached[0]["argmax"] == full["argmax"]
        ranking = auroc(first, agrees)
        out = self._quality(routed.loss, routed.argmax, routed.exit, full["argmax"], self.target)
        out |= {
            "tokens": len(routed.loss),
            "documents": len(np.unique(self.document)),
            "exit_fraction": {
                f"exit_{exit}": float((routed.exit == exit).mean()) for exit in range(self.last + 1)
            },
            "layer_saving": layer_saving(self.model, routed.work),
            "flop_saving": 1 - flops / full_depth_flops(self.model, routed.work.tokens, self.windows.window),
            "bits_per_byte": self._bits_per_byte(routed.loss),
            "full_bits_per_byte": self._bits_per_byte(full["loss"]),
            "ppl_increase": float(
                np.exp(routed.loss.mean(dtype=np.float64) - full["loss"].mean(dtype=np.float64)) - 1
            ),
            "propagation_nll": float(routed.loss.mean(dtype=np.float64) - mixture.mean(dtype=np.float64)),
            "loss_gap": gap,
            "oracle_share": gap / loss_gap(true_easy, self.cached[0]["loss"]),
            "ece": expected_calibration_error(first, agrees),
            "auroc": None if np.isnan(ranking) else ranking,
            "aurc": aurc(first, ~agrees),
        }
        intervals = {
            "ppl": interval(np.exp(draws["loss"])),
            "accuracy": interval(draws["correct"]),
            "ppl_increase": interval(np.exp(draws["loss"] - draws["full"]) - 1),
            "ece": interval(
                resampled_calibration_error(
                    first, agrees, self.document, self.settings.bootstrap, self.settings.seed
                )
            ),
        }
        controls, control_intervals, headroom = self._controls()
        return out | {
            "controls": controls,
            "headroom": headroom,
            "interval": intervals | control_intervals,
            "control_tokens": self.control_rows.size,
        }

    def _bits_per_byte(self, loss: np.ndarray) -> float | None:
        return bits_per_byte(float(loss.sum(dtype=np.float64)), float(self.bytes_of_token[self.target].sum()))

    def kept(self, promise: dict[str, Any]) -> dict[str, Any]:
        """The promised risk as it came out on the test split, executed: ``test_risk``, its interval over documents, ``kept``."""
        full = self.cached[self.last]
        loss, argmax = (np.stack((getattr(self.routed, name), full[name])) for name in ("loss", "argmax"))
        risk = token_risk(promise["measure"], loss, argmax, self.target)[0]
        draws = DocumentSums(self.document, {"risk": risk}).resample(
            self.settings.bootstrap, self.settings.seed
        )
        found = float(risk.mean())
        return {
            "test_risk": found,
            "test_interval": interval(draws["risk"]),
            "kept": found <= promise["tolerance"],
        }

    def _controls(self) -> tuple[dict[str, Any], dict[str, Any], float | None]:
        """Fixed depths on all tokens; random exits and oracles on control windows, at the signal's exit counts."""
        full, tokens = self.cached[self.last], self.routed.work.tokens
        whole = full_depth_flops(self.model, tokens, self.windows.window)
        out: dict[str, Any] = {}
        for exit in range(self.last + 1):
            name = "full" if exit == self.last else f"exit_{exit}"
            cached, layers = self.cached[exit], sum(self.model.config.block_layers[: exit + 1])
            own = [0] * exit + [tokens] if self.model.exit_layer(exit) else []
            pairs = (layers + bool(own)) * tokens * self.windows.window
            work = Work(
                [tokens] * layers, [tokens] * layers, pairs, [0] * exit + [tokens], 0, tokens, own, own
            )
            out[name] = self._quality(
                cached["loss"], cached["argmax"], np.full(tokens, exit), full["argmax"], self.target
            )
            out[name] |= {
                "layer_saving": layer_saving(self.model, work),
                "flop_saving": 1 - executed_flops(self.model, work) / whole,
            }
        chosen, rows = self._control_sample()
        counts = [int((self.routed.exit[rows] == exit).sum()) for exit in range(self.last)]
        loss = {"signal": self.routed.loss[rows]}
        out["signal"] = self._quality(
            self.routed.loss[rows],
            self.routed.argmax[rows],
            self.routed.exit[rows],
            full["argmax"][rows],
            self.target[rows],
        )
        for name in CONTROLS:
            exits = exits_by_share(
                control_scores(self.states, name, rows, self.settings.seed), counts, self.free[rows]
            )
            run = run_split(
                self.executor, self.windows, chosen, None, self.settings.batch_size, self.device, exits, name
            )
            loss[name] = run.loss
            out[name] = self._quality(run.loss, run.argmax, run.exit, full["argmax"][rows], self.target[rows])
        sums = DocumentSums(self.document[rows], loss)
        draws = sums.resample(self.settings.bootstrap, self.settings.seed)
        intervals = {"random_minus_signal_nll": interval(draws["random"] - draws["signal"])}
        means = {name: values.mean(dtype=np.float64) for name, values in loss.items()}
        available = means["random"] - means["gain_oracle"]
        if (
            max(*counts, len(rows) - sum(counts)) == len(rows) or available <= 0
        ):  # one exit takes all: nothing to choose
            return out, {**intervals, "headroom": None}, None
        intervals["headroom"] = interval(
            (draws["random"] - draws["signal"]) / (draws["random"] - draws["gain_oracle"])
        )
        return out, intervals, float((means["random"] - means["signal"]) / available)

    def _control_sample(self) -> tuple[Tensor, np.ndarray]:
        chosen = spread_windows(len(self.windows), self.settings.control_windows)
        self.control_rows = token_rows(chosen, self.windows.window)
        return chosen, self.control_rows

    def _quality(
        self,
        loss: np.ndarray,
        argmax: np.ndarray,
        exit: np.ndarray,
        full_argmax: np.ndarray,
        target: np.ndarray,
    ) -> dict[str, float]:
        return {
            "ppl": float(np.exp(loss.mean(dtype=np.float64))),
            "accuracy": float((argmax == target).mean()),
            "agreement": float((argmax == full_argmax).mean()),
            "shallow_ratio": float((exit < self.last).mean()),
        }

    def reliability_rows(self) -> list[dict[str, Any]]:
        """Rows of reliability.csv: per exit, over the tokens that arrived there."""
        rows, full = [], self.cached[self.last]["argmax"]
        for exit in range(self.last):
            here = self.routed.exit >= exit
            if here.any():
                agrees = self.cached[exit]["argmax"][here] == full[here]
                rows += [{"exit": exit, **row} for row in reliability(self.scores[exit][here], agrees)]
        return rows

    def position_rows(self) -> list[dict[str, Any]]:
        """Rows of exits_by_position.csv: share of tokens taking each exit, by position in the window."""
        table = self.routed.exit.reshape(-1, self.windows.window)
        return [
            {"position": position, "exit": exit, "share": float((table[:, position] == exit).mean())}
            for exit in range(self.last + 1)
            for position in range(self.windows.window)
        ]

    def timing(self) -> dict[str, Any]:
        """Seconds of the same batches in turn: the plain full-depth pass, the routed one, and its two halves apart.

        ``wall_saving``: 1 - routed / plain. ``skipping_saving``: the same with the exits laid down, so that nothing is asked;
        ``asking_cost``: share by which a pass in which every exit is asked and nobody leaves is longer than the plain one,
        and ``asking_microseconds`` of it per token and exit asked. Medians of pairwise ratios; low and high: middle half.
        """
        rows = spread_windows(len(self.windows), self.settings.timing_batches * self.settings.batch_size)
        size = self.windows.window
        taken = torch.from_numpy(self.routed.exit).view(-1, size)
        arms: dict[str, list[float]] = {"plain": [], "routed": [], "skipping": [], "asking": []}
        asked = Work()
        for number, batch in enumerate(rows.split(self.settings.batch_size)):
            batch_text = tuple(part.to(self.device) for part in self.windows.batch(batch))
            given = GivenExits(taken[batch].flatten().to(self.device))
            policies = {
                "plain": None,
                "routed": self.policy,
                "skipping": given,
                "asking": NobodyLeaves(self.policy),
            }
            if not number:  # warm up; all but the plain pass on one sequence: what is made once does not grow with the batch
                self.executor.run(*batch_text, None)
                for policy in policies.values():
                    self.executor.run(*(part[:1] for part in batch_text), policy)
            turn = number % len(arms)
            for name in (*list(arms)[turn:], *list(arms)[:turn]):
                arms[name].append(
                    pass_seconds(
                        self.executor, batch_text, policies[name], asked if name == "asking" else None
                    )
                )
        ratios = {
            name: sorted(s / p for s, p in zip(seconds, arms["plain"])) for name, seconds in arms.items()
        }
        quarter = len(arms["plain"]) // 4
        tokens, plain, routed = len(rows) * size, sum(arms["plain"]), sum(arms["routed"])
        asking = statistics.median(ratios["asking"]) - 1
        return {
            "wall_saving": 1 - statistics.median(ratios["routed"]),
            "wall_saving_low": 1 - ratios["routed"][-1 - quarter],
            "wall_saving_high": 1 - ratios["routed"][quarter],
            "skipping_saving": 1 - statistics.median(ratios["skipping"]),
            "asking_cost": asking,
            "asking_microseconds": 1e6 * asking * plain / asked.decided_tokens,
            "full_seconds": plain,
            "routed_seconds": routed,
            "full_tokens_per_second": tokens / plain,
            "routed_tokens_per_second": tokens / routed,
            "pairs": len(arms["plain"]),
            "machine": machine(self.device),
        }


def pass_seconds(
    executor: Executor, batch: tuple[Tensor, ...], policy: Policy | None, work: Work | None = None
) -> float:
    """Seconds of one pass over a batch that is on its device."""
    _wait_for(batch[0].device)
    start = time.perf_counter()
    executor.run(*batch, policy, work)
    _wait_for(batch[0].device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def spread_windows(total: int, wanted: int) -> Tensor:
    """At most ``wanted`` evenly spaced window numbers."""
    return torch.linspace(0, total - 1, min(wanted, total)).long()


def token_rows(chosen: Tensor, window: int) -> np.ndarray:
    """Rows of the token table that belong to the chosen windows."""
    return (chosen.numpy()[:, None] * window + np.arange(window)).ravel()


def machine(device: torch.device) -> str:
    """A short name of what a timing was taken on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def threshold_curve(
    executor: Executor,
    windows: TokenWindows,
    states: States,
    scorers: dict[str, Scorer],
    settings: Any,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Rows of threshold_curve.csv: every signal and control, executed at equal exit fractions.

    At every exit the given share of arriving tokens leaves (of those that may), picked by each signal's ranking of the control
    windows: this measures how well signals rank, not a threshold one could have set beforehand. Confidences come from
    cached states, exact for the first exit; for later ones they are those of tokens whose predecessors all stayed.
    """
    model, last = executor.model, executor.model.config.num_blocks - 1
    chosen = spread_windows(len(windows), settings.control_windows)
    rows = token_rows(chosen, windows.window)
    target, full_argmax = states.column("target")[rows], states.column(f"argmax_{last}")[rows]
    whole = full_depth_flops(model, len(rows), windows.window)
    free = states.column("position")[rows] >= settings.keep_first
    scores = {name: scorer.on_cached(states)[:, rows] for name, scorer in scorers.items()}
    scores |= {name: control_scores(states, name, rows, settings.seed) for name in CONTROLS}
    table = []
    for exit in range(last + 1):
        exits = np.full(len(rows), exit)
        run = run_split(
            executor, windows, chosen, None, settings.batch_size, device, exits, f"curve, exit {exit}"
        )
        table.append(
            _curve_row("fixed", float(exit < last), run, target, full_argmax, model, whole, None, exits)
        )
    for fraction in settings.curve_fractions:
        here = []
        for name, score in scores.items():
            counts, waiting = [], int(free.sum())
            for _ in range(last):
                counts.append(round(fraction * waiting))
                waiting -= counts[-1]
            exits = exits_by_share(score, counts, free)
            run = run_split(
                executor,
                windows,
                chosen,
                None,
                settings.batch_size,
                device,
                exits,
                f"curve, {name} {fraction}",
            )
            here.append(
                _curve_row(name, fraction, run, target, full_argmax, model, whole, scorers.get(name), exits)
            )
            if name in scorers:
                here[-1]["threshold"] = float(score[0][exits == 0].min()) if counts[0] else None
        nll = {row["signal"]: np.log(row["ppl"]) for row in here}
        for row in here:
            row["headroom"] = float(
                (nll["random"] - nll[row["signal"]]) / (nll["random"] - nll["gain_oracle"])
            )
        table += here
    return table


def _curve_row(
    name: str,
    fraction: float,
    run: RoutedSplit,
    target: np.ndarray,
    full_argmax: np.ndarray,
    model: Blockwise,
    whole: int,
    scorer: Scorer | None,
    exits: np.ndarray,
) -> dict[str, Any]:
    last = model.config.num_blocks - 1
    decision_flops = 0
    if (
        scorer
    ):  # exits were laid down, but the signal itself has a price: readouts of all who arrive, or a classifier
        if scorer.reads_out:
            for exit in range(last):
                run.work.count_readouts(exit, int((exits > exit).sum()))
        decision_flops = scorer.flops_per_token
    else:
        run.work.decided_tokens = 0
    return {
        "signal": name,
        "fraction": fraction,
        "threshold": None,
        "shallow_ratio": float((run.exit < last).mean()),
        "ppl": float(np.exp(run.loss.mean(dtype=np.float64))),
        "accuracy": float((run.argmax == target).mean()),
        "agreement": float((run.argmax == full_argmax).mean()),
        "layer_saving": layer_saving(model, run.work),
        "flop_saving": 1 - executed_flops(model, run.work, decision_flops) / whole,
        "headroom": None,
    }


def all_scorers(exits: Any, device: torch.device) -> dict[str, Scorer]:
    return {name: Scorer(exits, name, device) for name in exits.config["signals"]}
