"""Which account a policy may trade on: exchange, mode, keys, and the acts that arm real money."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from perpgym.agents.artifact import Artifact
from perpgym.data.clock import MINUTE_MS, iso
from perpgym.data.contract import Contract
from perpgym.envs.live.journal import Journal

EXCHANGES = ("simulated", "binanceusdm", "bybit")
MODES = ("paper", "demo", "live")
# the name that other programs have for it
_ALIASES = {"testnet": "demo"}
# what of a contract changes what an order means
_MEANING = ("symbol", "kind", "contract_size")
# the simulated exchange's own, which guard nothing
_TOY_KEYS = ("key", "secret")


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the command line asks for; ``configs/live.yaml`` explains each.

    Raises:
        ValueError: a choice is unknown, or the exchange has no such account.
    """

    run: str = ""
    seed: int | None = None
    ensemble: str | None = None
    baseline: str | None = None
    abstain_above: float | None = None
    exchange: str = "simulated"
    mode: str = "demo"
    armed: bool = False
    url: str = "http://127.0.0.1:8787"
    journal: str | None = None
    on_stop: str = "freeze"
    kill_file: str | None = None
    decisions: int | None = None
    wallet: float | None = None
    accept_changed_rules: bool = False
    accept_new_key: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", _ALIASES.get(self.mode, self.mode))
        for name, allowed in (("exchange", EXCHANGES), ("mode", MODES), ("on_stop", ("freeze", "flatten"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, was {getattr(self, name)!r}")
        if self.baseline is not None and (self.ensemble is not None or self.abstain_above is not None):
            raise ValueError(
                f"baseline={self.baseline} trades by itself: leave out ensemble and abstain_above"
            )
        if self.seed is not None and (self.ensemble is not None or self.baseline is not None):
            raise ValueError(
                f"seed={self.seed} names one policy that trades: leave it out, or ensemble and baseline"
            )
        if self.exchange == "simulated" and self.mode == "live":
            raise ValueError(
                "the simulated exchange has no real money: mode must be demo, its own account, or paper"
            )
        if self.wallet is not None and self.mode != "paper":
            raise ValueError(
                f"wallet= is what a paper account begins with, was {self.wallet:g} with mode={self.mode}: "
                "that account has what it has: leave it out (the simulated exchange takes --wallet)"
            )
        if self.wallet is not None and not 0.0 < self.wallet < math.inf:
            raise ValueError(f"wallet must be positive (settle currency), was {self.wallet}")
        if self.decisions is not None and self.decisions < 1:
            raise ValueError(f"decisions must be at least 1, was {self.decisions}; null for no end")

    def journal_path(self) -> Path:
        """Where the journal lies."""
        if self.journal is not None:
            return Path(self.journal)
        return Path(self.run) / "live" / f"{self.exchange}_{self.mode}.sqlite"

    def free_journal_path(self) -> Path:
        """The same; of a paper account, which begins anew with every program, one that is not there yet.

        Raises:
            ValueError: a paper account is to go on with a journal.
        """
        path = self.journal_path()
        if self.mode != "paper" or not path.exists():
            return path
        if self.journal is not None:
            raise ValueError(
                f"a paper account begins anew, and {path} is there already: name another journal"
            )
        numbered = (path.with_stem(f"{path.stem}_{number}") for number in count(2))
        return next(candidate for candidate in numbered if not candidate.exists())

    def kill_path(self) -> Path:
        """The file that stops the program."""
        return self.journal_path().parent / "STOP" if self.kill_file is None else Path(self.kill_file)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Of one account; never shown."""

    key: str
    secret: str

    def __repr__(self) -> str:
        return "Keys(…)"


def read_keys(call: Call, environment: Mapping[str, str]) -> Keys:
    """The account's keys, from the environment only; real money is armed here or not at all.

    Live trading takes two acts in two places: ``armed=true`` on the command line and the key's last four
    characters in ``PERPGYM_LIVE``. A config that was copied, a variable that was left behind or the key of
    another account then trades nothing.

    Raises:
        ValueError: a key is missing, or real money is not armed; says what to do.
    """
    if call.mode == "paper":
        return Keys(key="", secret="")
    prefix = f"PERPGYM_{call.exchange.upper()}_{call.mode.upper()}"
    if call.exchange == "simulated":
        prefix = "PERPGYM_SIMULATED"
    found = [environment.get(f"{prefix}_{name}", "") for name in ("KEY", "SECRET")]
    if call.exchange == "simulated":
        found = [mine or toy for mine, toy in zip(found, _TOY_KEYS, strict=True)]
    if not all(found):
        raise ValueError(
            f"{call.exchange} in mode {call.mode} needs {prefix}_KEY and {prefix}_SECRET in the environment "
            "(see .env.example); mode=paper needs no key"
        )
    keys = Keys(key=found[0], secret=found[1])
    if call.mode == "live":
        _check_armed(call, keys, environment.get("PERPGYM_LIVE", ""))
    return keys


def _check_armed(call: Call, keys: Keys, said: str) -> None:
    if not call.armed:
        raise ValueError("mode=live trades real money and is not armed: add armed=true if you mean it")
    if len(keys.key) < 8 or said != keys.key[-4:]:
        raise ValueError(
            "mode=live trades real money and is armed for no account: set PERPGYM_LIVE to the last four "
            f"characters of PERPGYM_{call.exchange.upper()}_LIVE_KEY if you mean this one"
        )


def check_rules(
    artifact: Artifact, contracts: Mapping[str, Contract], *, is_change_accepted: bool
) -> list[str]:
    """Compare the exchange's rules with those of training.

    Args:
        artifact: gives the contracts and their rules.
        contracts: the exchange's, by symbol.
        is_change_accepted: whether other ticks, lots, brackets or rates are a warning only.

    Returns:
        What has changed, in words.

    Raises:
        ValueError: a contract is missing or means something else, or a change is not accepted.
    """
    changed: list[str] = []
    wrong: list[str] = []
    for trained in artifact.contracts:
        if trained.symbol not in contracts:
            wrong.append(f"{trained.symbol} is not traded there")
            continue
        mine, theirs = trained.to_json(), contracts[trained.symbol].to_json()
        for name in mine:
            if mine[name] != theirs[name]:
                text = f"{trained.symbol} {name}: trained on {mine[name]}, the exchange has {theirs[name]}"
                (wrong if name in _MEANING else changed).append(text)
    if wrong:
        raise ValueError("the policy does not fit this exchange: " + "; ".join(wrong))
    if changed and not is_change_accepted:
        raise ValueError(
            "the exchange's rules are not those of training: " + "; ".join(changed)
            + ". If they have changed since, trade with accept_changed_rules=true, or train again"
        )  # fmt: skip
    return changed


def check_journal(journal: Journal, now_ms: int) -> None:
    """Refuse a journal of another exchange: a replay that was started again counts its trades from one.

    Args:
        journal: open.
        now_ms: the exchange's clock.

    Raises:
        ValueError: it is of a time that the exchange has not reached.
    """
    snapshot = journal.last_snapshot()
    if snapshot is not None and snapshot.at_ms > now_ms + MINUTE_MS:
        raise ValueError(
            f"{journal.path} was written at {iso(snapshot.at_ms)}, the exchange shows {iso(now_ms)}: it is "
            "the journal of another exchange; remove it, or name another with journal="
        )


def in_policy_order(artifact: Artifact, contracts: Mapping[str, Contract]) -> Sequence[Contract]:
    """The exchange's contracts in the order of the policy."""
    return tuple(contracts[trained.symbol] for trained in artifact.contracts)


def timeframe(bar_ms: int) -> str:
    """ccxt's name of a bar, e.g. ``1h``.

    Raises:
        ValueError: exchanges have no such bar.
    """
    for unit_ms, letter, allowed in (
        (86_400_000, "d", (1,)), (3_600_000, "h", (1, 2, 4, 6, 8, 12)), (60_000, "m", (1, 3, 5, 15, 30)),
    ):  # fmt: skip
        if bar_ms % unit_ms == 0 and bar_ms // unit_ms in allowed:
            return f"{bar_ms // unit_ms}{letter}"
    raise ValueError(f"no exchange has bars of {bar_ms} ms: train on 1m … 1d bars to trade live")


def plain(call: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of :class:`Call` among all that the config holds."""
    others = ("settings", "monitor", "replay")
    return {name: value for name, value in call.items() if name not in others}
