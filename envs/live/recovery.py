"""From whatever was left to an account that is known and protected: the way of every start and recovery."""

from __future__ import annotations

from dataclasses import replace

from perpgym.envs.live.bookkeeping import OVERLAP_MS, Bookkeeper
from perpgym.envs.live.broker import AccountTruth, Order, OrderState, Settings
from perpgym.envs.live.context import PREFIX, Context
from perpgym.envs.live.insist import StartRefused
from perpgym.envs.live.instance_lock import AccountTaken
from perpgym.envs.live.journal import Journal
from perpgym.envs.live.protection import Protection
from perpgym.envs.live.sender import Sender

__all__ = ["Recovery", "StartRefused", "bind"]


def bind(journal: Journal, account_id: str) -> None:
    """A journal is of one account: its wallet, books and decisions mean nothing to another.

    Args:
        account_id: see ``Broker``.

    Raises:
        StartRefused: this one is another's.
    """
    known = journal.meta("account_id")
    if known not in (None, account_id):
        raise StartRefused(
            f"{journal.path} is the journal of account {known}, this one is {account_id} (made of the "
            "exchange's address and the key): name another with journal=; if it is the same account with a "
            "new key, start once with accept_new_key=true"
        )
    journal.set_meta("account_id", account_id)


class Recovery:
    """Finds out everything and sets everything right."""

    def __init__(self, context: Context, sender: Sender, keeper: Bookkeeper, protection: Protection) -> None:
        self._x, self._sender, self._keeper, self._protection = context, sender, keeper, protection

    async def open(self, settings: Settings) -> AccountTruth:
        """The first steps of a start: connect, look who else is here, set the account up, recover.

        Raises:
            StartRefused, AccountTaken: this account is not to be traded on.
            BrokerError: the exchange did not answer, or will not have the settings.
        """
        x = self._x
        await x.broker.open()
        x.contracts = await x.broker.contracts()
        if x.journal.meta("began_ms") is None:
            # clocks differ; what the exchange did before the start is written down and not booked
            x.journal.set_meta("began_ms", str(x.broker.now_ms() - OVERLAP_MS))
        self._keeper.begin(int(x.journal.meta("began_ms") or 0))
        truth = await x.broker.account()
        self._meet_strangers(truth)
        await self._check_status(truth)
        await x.broker.set_up(settings)
        return await self.recover()

    def _meet_strangers(self, truth: AccountTruth) -> None:
        """Orders of ours that a damaged journal has lost are taken back; another perpgym's are refused."""
        x = self._x
        unknown = [
            order
            for order in (*truth.orders, *truth.stops)
            if order.client_id.startswith(PREFIX) and order.client_id not in x.table
        ]
        others = [order.client_id for order in unknown if not x.is_ours(order.client_id)]
        if others:
            raise AccountTaken(
                f"orders of another perpgym rest on this account ({', '.join(others[:3])}): stop it and "
                "cancel them, or start with its journal"
            )
        for order in unknown:
            x.note("warning", "taken_back", client_id=order.client_id, contract=order.contract)
            self._sender.prepare([replace(order, state=OrderState.SENT)])

    async def _check_status(self, truth: AccountTruth) -> None:
        for name in self._x.contracts:
            status = await self._x.broker.status(name)
            if status != "trading" and truth.quantity(name) == 0.0:
                raise StartRefused(f"{name} must be trading, is {status}; leave it out or wait")
            if status != "trading":
                self._x.hold(f"status {name}", "reduce_only", f"{name} is {status}")

    async def recover(self) -> AccountTruth:
        """No unsure order, books = account, nothing rests, stops in place, the exchange told of us."""
        x = self._x
        for order in x.table.open() + x.table.open(stops=True):
            if order.state is OrderState.PREPARED:
                await self._settle_unsent(order)
            elif order in x.table.unsure():
                self._sender.look_for(order.client_id)
        if not await self._sender.wait_resolved(x.timings.settle_s):
            x.note("alarm", "still_unknown", orders=[o.client_id for o in x.table.unsure()])
        truth = await self._keeper.open()
        self._note_beginning(truth)
        await self._sender.cancel_all(x.table.open(), x.timings.settle_s)
        if x.table.open():
            x.hold("orders", "recovering", "resting orders could not be cancelled")
        truth, differences = await self._keeper.reconcile()
        if differences:
            self._keeper.adopt(truth, differences)
        self._keeper.take()
        await self._protection.check()
        await self._protection.hold()
        await self.arm()
        x.marks = await x.broker.mark_prices()
        return truth

    async def _settle_unsent(self, order: Order) -> None:
        """An order that was written down and not marked as sent: one look is proof enough."""
        found = await self._x.broker.find(order.client_id, order.contract, order.is_stop)
        if found is None:
            self._sender.drop(order, "a restart came before it was sent")
        else:
            self._x.report(found, "found")

    def _note_beginning(self, truth: AccountTruth) -> None:
        """What the wallet was before the journal's first row: all its income adds up from there."""
        journal = self._x.journal
        if journal.meta("began_wallet") is None:
            known = sum(row.amount for row in journal.incomes())
            journal.set_meta("began_wallet", repr(truth.wallet - known))

    async def arm(self) -> None:
        """Tell the exchange that somebody is here."""
        for name in self._x.contracts:
            await self._x.broker.arm_dead_man(name, self._x.timings.dead_man_ms)
