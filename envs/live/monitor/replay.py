"""Rebuilds an account from its journal alone and says where journal and exchange tell different stories.

``python -m perpgym.envs.live.monitor.replay JOURNAL`` checks the journal against itself; ``live.py
replay=JOURNAL`` also asks the exchange. Reads only, on both sides.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perpgym.data.clock import DAY_MS
from perpgym.envs.live.broker import AccountTruth, Broker, Fill, Income, Order, OrderState
from perpgym.envs.live.journal import JournalBroken
from perpgym.envs.live.monitor.story import (
    CONCLUDED,
    QUANTITY_TOLERANCE,
    WALLET_TOLERANCE,
    Difference,
    Story,
    different,
    rebuild,
)

# exchanges forget orders that ended without a fill after some days
_REMEMBERED_MS = 3 * DAY_MS
_NEVER_THERE = CONCLUDED | {OrderState.PREPARED}


async def compare(story: Story, broker: Broker) -> list[Difference]:
    """What the exchange's own records say otherwise.

    Args:
        story: from :func:`~perpgym.envs.live.monitor.story.rebuild`.
        broker: of the same account; opened and closed here. Nothing is sent that changes anything.

    Raises:
        BrokerError: it would not say.
    """
    await broker.open()
    try:
        return [*await _compare_records(story, broker), *await _compare_orders(story, broker)]
    finally:
        await broker.close()


async def _compare_records(story: Story, broker: Broker) -> list[Difference]:
    """Trades, income and the account; what happened after the journal's end is told, and no difference."""
    contracts = await broker.contracts()
    # the account first: what comes between the questions is in the records, and later than the journal
    truth = await broker.account()
    fills = [fill for name in contracts for fill in await broker.fills(name, story.began_ms)]
    income = await broker.income(story.began_ms)
    known, booked = {_fill_name(fill) for fill in story.fills}, {row.income_id for row in story.income}
    later_fills = [f for f in fills if f.time_ms > story.ended_ms and _fill_name(f) not in known]
    later_income = [r for r in income if r.time_ms > story.ended_ms and r.income_id not in booked]
    if later_fills or later_income:
        story.later.append(f"later came {len(later_fills)} trades and {len(later_income)} changes of wallet")
    ours = {_fill_name(fill): _fill_words(fill) for fill in story.fills}
    told = {_fill_name(fill): _fill_words(fill) for fill in fills if fill not in later_fills}
    our_income = {row.income_id: f"{row.kind} {row.amount!r}" for row in story.income}
    their_income = {row.income_id: f"{row.kind} {row.amount!r}" for row in income if row not in later_income}
    return [
        *_unequal("trade", ours, told),
        *_unequal("income", our_income, their_income),
        *_compare_account(
            story, truth,
            [f for f in later_fills if f.time_ms <= truth.time_ms],
            [r for r in later_income if r.time_ms <= truth.time_ms],
        ),
    ]  # fmt: skip


def _unequal(what: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[Difference]:
    for which in sorted({*ours, *theirs}):
        if ours.get(which) != theirs.get(which):
            yield different(what, which, ours.get(which, "missing"), theirs.get(which, "missing"))


def _fill_name(fill: Fill) -> str:
    return f"{fill.contract} {fill.trade_id}"


def _fill_words(fill: Fill) -> str:
    return f"{fill.quantity!r} at {fill.price!r}, fee {fill.fee!r}, {fill.client_id}"


def _compare_account(
    story: Story, truth: AccountTruth, later_fills: Sequence[Fill], later_income: Sequence[Income]
) -> Iterator[Difference]:
    """The account now against the journal's end and what came later."""
    wallet = math.fsum([story.wallet, *(row.amount for row in later_income)])
    if not math.isnan(wallet) and abs(wallet - truth.wallet) > WALLET_TOLERANCE:
        yield different("wallet", "now", repr(wallet), repr(truth.wallet))
    traded = {fill.contract: 0.0 for fill in later_fills}
    for fill in later_fills:
        traded[fill.contract] += fill.quantity
    for name in sorted({*story.positions, *truth.positions, *traded}):
        ours, theirs = story.positions.get(name, 0.0) + traded.get(name, 0.0), truth.quantity(name)
        if abs(ours - theirs) > QUANTITY_TOLERANCE:
            yield different("position", name, f"{ours:g}", f"{theirs:g}")


async def _compare_orders(story: Story, broker: Broker) -> list[Difference]:
    """Each order that the exchange can still know; those it never saw must not be there."""
    found, now_ms = [], await broker.server_time_ms()
    for name, order in story.orders.items():
        if order.state.is_final and not order.filled and order.updated_ms < now_ms - _REMEMBERED_MS:
            continue
        told = await broker.find(name, order.contract, order.is_stop)
        ours, theirs = _order_words(order), "none" if told is None else _order_words(told)
        if (ours := "none" if order.state in _NEVER_THERE else ours) != theirs:
            found.append(different("order", name, ours, theirs))
    return found


def _order_words(order: Order) -> str:
    # what a stop fills is the fill of the order that it sends
    return f"{order.state}" + ("" if order.is_stop else f", filled {order.filled:g}")


# --- for people ---


def report(story: Story, exchange: Sequence[Difference] | None = None) -> str:
    """The story in a few lines, and a table of what each side tells differently.

    Args:
        story: with what the journal contradicts itself in.
        exchange: what the exchange's records say otherwise; None where nobody asked it.
    """
    held = ", ".join(f"{quantity:g} {name}" for name, quantity in story.positions.items()) or "flat"
    wallet = "unknown" if math.isnan(story.wallet) else f"{story.wallet:.8f}"
    lines = [
        f"{len(story.decisions)} decisions, {len(story.orders)} orders, {len(story.fills)} trades, "
        f"{len(story.income)} changes of the wallet",
        f"wallet {wallet}, {held}",
        *story.later,
        *_verdict("itself", "elsewhere in it", story.differences),
    ]
    asked = ["the exchange was not asked"] if exchange is None else _verdict(
        "the exchange's records", "exchange", exchange
    )  # fmt: skip
    return "\n".join([*lines, *asked])


def _verdict(against: str, other: str, differences: Sequence[Difference]) -> list[str]:
    """That the journal agrees, or a table of what differs."""
    if not differences:
        return [f"the journal agrees with {against}"]
    rows = [("what", "which", "journal", other)]
    rows += [(d.what, d.which, d.journal, d.other) for d in differences]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = ["  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]) for row in rows]
    return [f"the journal differs from {against} ({len(differences)}):", *(f"  {line}" for line in table)]


def replay(path: Path, say: Callable[[str], Any] = print) -> int:
    """Rebuild a journal, compare it with itself, and say it.

    Args:
        path: of the journal.
        say: where the report goes.

    Returns:
        0 where all agrees, 1 where anything differs, 2 where the journal cannot be read.
    """
    try:
        story = rebuild(path)
    except JournalBroken as error:
        say(f"error: {error}")
        return 2
    say(report(story))
    return 1 if story.differences else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: the journal against itself."""
    parser = argparse.ArgumentParser(prog="python -m perpgym.envs.live.monitor.replay", description=__doc__)
    parser.add_argument("journal", type=Path)
    return replay(parser.parse_args(arguments).journal)


if __name__ == "__main__":
    sys.exit(main())
