"""Why a policy decided as it did at one close: what it looked at, and what moved its answer."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perpgym.data.clock import iso
from perpgym.envs.actions import DECISIONS
from perpgym.envs.spaces import ACCOUNT_NAMES, PORTFOLIO_NAMES
from perpgym.evaluation.decisions import Decision
from perpgym.evaluation.numerals import base
from perpgym.policies.actor_critic import PerpActorCriticPolicy
from perpgym.policies.bound_tape import BoundTape, without_invalid
from perpgym.policies.features import PerpFeatures
from perpgym.policies.hierarchical_quantile import HierarchicalQuantilePolicy
from perpgym.policies.hierarchy import PerpHierarchicalPolicy
from perpgym.policies.quantile import PerpQuantilePolicy

Floats = NDArray[np.float64]
# baselines, steps of each path integral, and rows that are differentiated at once
_BASELINES, _STEPS, _ROWS = 8, 400, 256
# of what is explained or of the largest part: parts that miss more than this are not to be read
_LARGEST_ERROR = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Integrated gradients (Sundararajan, Taly and Yan 2017) of one number that the decision rests on.

    The baselines are windows of the same market, spread evenly over the bars before at which every contract
    of the decision had its columns, and a flat account; the mean over them is what is shown (expected
    gradients: Erion et al. 2021). A contract that the decision did not see is seen by none of them. A market
    at the mean of every column would be no baseline: there a layer norm divides nothing by nothing. The parts
    add up to ``answer - baseline_answer`` but for ``error``, of the numerical integral.

    Attributes:
        decision: what is explained.
        contract: which contract's answer.
        what: in words, what the number is.
        answer, baseline_answer: the number here, and its mean over the baselines.
        market: (R, A, F), part of each feature of each bar, oldest first.
        risk: (R, A, K), the same of the risk columns.
        state: (S,), part of each account, portfolio and option column.
        attention: (A, R) weights of bars, newest first; None where the encoder has none to show.
        selection: (A, F) weights of features at the newest bar; None likewise (only ``policy=tft`` has them).
        manager: by name, what the manager of a two-level policy had set for the contract when the worker
            decided, see ``terms`` of its options; None for a policy of one level.
    """

    decision: Decision
    contract: int
    what: str
    answer: float
    baseline_answer: float
    market: Floats
    risk: Floats
    state: Floats
    attention: Floats | None = None
    selection: Floats | None = None
    manager: Mapping[str, float] | None = None

    @property
    def error(self) -> float:
        """How far the parts miss the difference that they explain."""
        parts = self.market.sum() + self.risk.sum() + self.state.sum()
        return float(parts - (self.answer - self.baseline_answer))

    @property
    def warning(self) -> str | None:
        """In words, that the parts miss what they explain by far; None where they add up."""
        explained = self.answer - self.baseline_answer
        # parts that cancel can be read although they come to almost nothing
        largest = max(abs(part) for part in (explained, *self.by_feature.values(), *self.by_state.values()))
        # written so that nan is told
        if abs(self.error) <= _LARGEST_ERROR * largest:
            return None
        return (
            f"the parts do not add up: they miss {explained:+.3g}, which they explain, by {self.error:+.3g}; "
            "do not rely on them"
        )

    @property
    def by_feature(self) -> dict[str, float]:
        """Part of every feature and risk column of every contract, over all bars."""
        tape, parts = self.decision.tape, dict[str, float]()
        for asset, contract in enumerate(tape.contracts):
            prefix = "" if len(tape.contracts) == 1 else f"{base(contract.symbol)} "
            for names, columns in ((tape.feature_names, self.market), (tape.risk_names, self.risk)):
                of_contract = columns[:, asset].sum(axis=0)
                parts |= {f"{prefix}{n}": float(v) for n, v in zip(names, of_contract, strict=True)}
        return parts

    @property
    def by_state(self) -> dict[str, float]:
        """Part of every account and portfolio column; what a policy remembers comes together."""
        tape = self.decision.tape
        names = []
        for contract in tape.contracts:
            prefix = "" if len(tape.contracts) == 1 else f"{base(contract.symbol)} "
            names += [f"{prefix}{name}" for name in ACCOUNT_NAMES]
        names += PORTFOLIO_NAMES
        parts = {name: float(v) for name, v in zip(names, self.state, strict=False)}
        if len(self.state) > len(names):
            parts["option"] = float(self.state[len(names) :].sum())
        return parts

    @property
    def by_bar(self) -> Floats:
        """(R,) part of every bar's market and risk columns, oldest first."""
        return np.asarray(self.market.sum(axis=(1, 2)) + self.risk.sum(axis=(1, 2)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        tape, decision = self.decision.tape, self.decision
        return {
            "contract": tape.contracts[self.contract].symbol,
            "decided_at": iso(int(tape.open_time_ms[decision.bar]) + tape.bar_ms),
            "action": decision.action.tolist(),
            "exposure_before": decision.exposure.tolist(),
            "chosen_as": decision.chosen_as,
            "explained": self.what,
            "level_explained": None if self.manager is None else "worker",
            "manager_had_set": None if self.manager is None else dict(self.manager),
            "answer": self.answer,
            "baseline_answer": self.baseline_answer,
            "integration_error": self.error,
            "warning": self.warning,
            "by_feature": self.by_feature,
            "by_state": self.by_state,
            "by_bar_oldest_first": self.by_bar.tolist(),
            "attention_newest_first": None if self.attention is None else self.attention.tolist(),
            "feature_selection": None if self.selection is None else self.selection.tolist(),
        }

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")


def check_explainable(policy: Any) -> None:
    """Refuse, before anything takes long, a policy whose decisions cannot be taken apart here.

    Raises:
        ImportError: captum is not installed; says how to get it.
        ValueError: it is not one of perpgym's own.
    """
    if not isinstance(policy, PerpActorCriticPolicy | PerpQuantilePolicy):
        raise ValueError(
            f"{type(policy).__name__} has no explanation: only the policies of perpgym's own algorithms have "
            "(PPO and QR-DQN, of one level or two), not those of the controls; leave out explain=true"
        )
    if importlib.util.find_spec("captum") is None:
        raise ImportError("explaining a decision needs captum: pip install 'perpgym[explain]'")


def explain(policy: Any, decision: Decision, *, contract: int = 0) -> Attribution:
    """Take a decision apart.

    Args:
        policy: the one that decided.
        decision: from :func:`perpgym.evaluation.decisions.replay_decision`.
        contract: whose answer is explained.

    Raises:
        ImportError, ValueError: as :func:`check_explainable`.
        ValueError: no window before the decision holds all contracts that the decision saw.
    """
    check_explainable(policy)
    from captum.attr import IntegratedGradients

    features = policy.features_extractor
    bound = BoundTape.of(decision.tape, policy.device)
    reach = features.receptive_field
    first = torch.tensor([decision.bar - (reach - 1)], device=policy.device)
    market, risk, clock = bound.stretches(first, reach)
    state = torch.from_numpy(decision.state).to(policy.device)[None]
    number, what = _number_of(policy, decision, contract)
    manager = _manager_terms(policy, decision, contract)

    def answer(market: torch.Tensor, risk: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        context = features.context(market, risk, clock.expand(len(market)))[:, 0]
        # a policy without risk encoder does not read them, and still they get their part: none
        return number(context, state) + 0.0 * torch.nan_to_num(risk).sum((1, 2))

    there = _baselines(features, decision, bound, state)
    here = tuple(
        now.expand(len(other), *now.shape[1:])
        for now, other in zip((market, risk, state), there, strict=True)
    )
    policy.set_training_mode(False)
    by_baseline = IntegratedGradients(answer).attribute(
        here, there, n_steps=_STEPS, method="gausslegendre", internal_batch_size=_ROWS
    )
    # a contract that was not there, in here and there alike, has no part
    parts = [part.masked_fill(now.isnan(), 0.0).mean(0) for part, now in zip(by_baseline, here, strict=True)]
    shape = (reach, len(decision.tape.contracts), -1)
    with torch.no_grad():
        answers = [float(answer(*inputs).mean()) for inputs in (here, there)]
    attention, selection = _weights(policy, decision, bound)
    return Attribution(
        decision=decision,
        contract=contract,
        what=what if manager is None else f"the worker's {what}",
        answer=answers[0],
        baseline_answer=answers[1],
        market=_plain(parts[0]).reshape(shape),
        risk=_plain(parts[1]).reshape(shape) if parts[1].numel() else np.zeros((*shape[:2], 0)),
        state=_plain(parts[2]).reshape(-1),
        attention=attention,
        selection=selection,
        manager=manager,
    )


def _manager_terms(policy: Any, decision: Decision, contract: int) -> dict[str, float] | None:
    if not isinstance(policy, PerpHierarchicalPolicy | HierarchicalQuantilePolicy):
        return None
    return policy.options.terms(decision.state[-policy.options.size :].tolist(), contract)


Number = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _number_of(policy: Any, decision: Decision, contract: int) -> tuple[Number, str]:
    """(n,) of contexts and states: what the decision on a contract rests on, and what that is in words."""
    n_contracts = len(decision.tape.contracts)
    if isinstance(policy, PerpQuantilePolicy):
        level = int(decision.action[contract])

        def worth(context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            levels = policy.level_worth(context, state)[:, contract]
            return levels[:, level] - levels.mean(-1)

        return worth, f"worth of level {level} above the mean of the ladder"
    counts = getattr(policy.action_heads, "counts", ())
    if not counts:
        column = contract * (len(decision.action) // n_contracts)
        return (
            lambda context, state: policy.action_parameters(context, state)[:, column],
            "mean of the exposure action",
        )
    place = contract * (len(counts) // n_contracts)
    begin, width, choice = sum(counts[:place]), counts[place], int(decision.action[place])

    def logit(context: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = policy.action_parameters(context, state)[:, begin : begin + width]
        return logits[:, choice] - logits.mean(-1)

    name = f"'{DECISIONS[choice]}'" if len(counts) == 4 * n_contracts else f"level {choice}"
    return logit, f"logit of {name} above the mean of its {width} choices"


def _baselines(
    features: PerpFeatures, decision: Decision, bound: BoundTape, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(n, R, A * F) and (n, R, A * K) windows of earlier bars, and (n, S) flat accounts."""
    reach = features.receptive_field
    found = _earlier_windows(decision, reach)
    starts = found[np.unique(np.linspace(0, len(found) - 1, _BASELINES).astype(np.int64))]
    market, risk, _clock = bound.stretches(torch.from_numpy(starts).to(bound.market.device), reach)
    if bound.is_valid is not None:
        # what the decision did not see must not come and go on the way to it
        seen = bound.is_valid[decision.bar + 1 - reach : decision.bar + 1].expand(
            len(starts), -1, -1
        )  # n R A
        market, risk = without_invalid(market, seen), without_invalid(risk, seen)
    flat = torch.zeros_like(state)
    names = [*ACCOUNT_NAMES * features.n_assets, *PORTFOLIO_NAMES]
    for name in ("liquidation_distance", "stop_distance", "target_distance", "tradable", "risk_budget"):
        for column in (i for i, other in enumerate(names) if other == name):
            flat[:, column] = 1.0
    # what is remembered is kept: the worker is explained within its option
    flat[:, len(names) :] = state[:, len(names) :]
    return market, risk, flat.expand(len(starts), -1)


def _earlier_windows(decision: Decision, reach: int) -> NDArray[np.int64]:
    """(n,) first bars of all windows before the decision's own that hold whatever its own holds.

    Raises:
        ValueError: there are none.
    """
    tape, own = decision.tape, decision.bar + 1 - reach
    starts = np.arange(tape.first_valid_bar, own)
    is_fit = np.ones(starts.size, np.bool_)
    # row by row: all windows at once would be R times the tape
    for row in range(reach):
        is_fit &= (tape.is_valid[starts + row] | ~tape.is_valid[own + row]).all(axis=1)
    if not is_fit.any():
        close = iso(int(tape.open_time_ms[decision.bar]) + tape.bar_ms)
        raise ValueError(
            f"the decision of {close} cannot be explained: it is compared with earlier windows of {reach} "
            "bars that show the same contracts, and there is none yet; take a later one with explain_time="
        )
    return starts[is_fit]


def _weights(policy: Any, decision: Decision, bound: BoundTape) -> tuple[Floats | None, Floats | None]:
    try:
        shown = policy.features_extractor.explain(
            torch.tensor([decision.bar], device=policy.device), 1, bound
        )
    except ValueError:
        return None, None
    selection = None if shown.selection is None else _plain(shown.selection)[0, :, 0]
    return _plain(shown.attention)[0, :, 0], selection


def _plain(tensor: torch.Tensor) -> Floats:
    out: Floats = tensor.detach().cpu().double().numpy()
    return out
