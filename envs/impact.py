"""The trace that an account's own fills leave: transient and permanent impact, and what later fills pay.

A fill pushes the quote in its own direction. The push is linear in the fill's notional; its transient part
decays with time as a sum of exponentials, its permanent part stays. Later fills of the same account pay the
push that is left, and half of their own. Marks are never moved, and a fill that paid nothing leaves
nothing. The square-root law of ``envs/execution.py`` is paid on top and leaves no trace.

Write x_i = s_i n_i for fill i, with n_i its signed notional and s_i = sqrt(sigma_i / V_i) what the market's
volatility and turnover were then (``Bar.root_illiquidity``). The quote stands off by s * sum_j G(t - t_j)
x_j, G(t) = sum_k a_k exp(-rho_k t) + permanent, all a_k >= 0, and fill i pays, as a cost,

    n_i s_i (sum_{j<i} G(t_i - t_j) x_j + G(0) x_i / 2) = E(after) - E(before),   E = sum_k y_k**2 / (2 a_k),

with y_k the component that a_k feeds. E starts at 0, is never negative, and decay only lowers it. So what a
sequence of fills has paid is at least E(now) >= 0: **no sequence of fills earns money from its own impact,
at any time, on any tape**. Four choices carry this, and a test breaks each of them:

* *Linear push.* With a concave push and exponential decay, buying slowly and selling fast earns (Gatheral
  2010, "No-dynamic-arbitrage and market impact", section 4). Linear with a convex, decreasing G is positive
  definite (Alfonsi, Schied, Slynko 2012, "Order book resilience, price manipulation, and the positive
  portfolio problem"); a permanent push must be linear (Huberman, Stanzl 2004, "Price manipulation and
  quasi-arbitrage").
* *Half of the own push.* It is what the same order pays in many small pieces at one instant, so splitting
  gains nothing. Less than half and an instant round trip earns; more is as safe, and rewards splitting.
* *The root.* With a push of sigma / V fed at one time and read at another, buying in a thin market and
  selling in a thick one earns (Fruth, Schöneborn, Urusov 2014, "Optimal trade execution and price
  manipulation in order books with time-varying liquidity"). The kernel sqrt(c_i) G sqrt(c_j) stays positive
  definite for any c > 0, so the reference turnover may follow the market: a slow trailing mean known at the
  decision (``impact_model.trailing_turnover``), never the turnover of the bar that is being filled.
* *Notional, not quantity.* With quantities, a price that doubled would pay back twice the push.

Stops are market orders and do all this; a resting order and a forced close neither pay nor leave a trace.
"""

from __future__ import annotations

from perpgym.envs.account import ORDER_PUSH
from perpgym.envs.compile import kernel

# fraction of the price; a fill is never shifted by more
MAX_SHIFT = 0.5
# below this a component has no effect on any price; without the cut it would end in slow subnormal numbers
_NEGLIGIBLE = 1e-30
# three components of the push decay, one stays
_TRANSIENT, _PERMANENT = 3, ORDER_PUSH + 3


@kernel
def decay_push(order, rules):  # type: ignore[no-untyped-def]
    """Let one (finer) bar pass for the push of an order row, in place."""
    for i in range(_TRANSIENT):
        if order[ORDER_PUSH + i] != 0.0:
            keep = rules.keep_0 if i == 0 else (rules.keep_1 if i == 1 else rules.keep_2)
            left = order[ORDER_PUSH + i] * keep
            order[ORDER_PUSH + i] = left if abs(left) > _NEGLIGIBLE else 0.0


@kernel
def standing_shift(order, root):  # type: ignore[no-untyped-def]
    """Signed fraction of the price by which the account's own quote stands off the tape; > 0 after buying.

    Args:
        order: (ORDER_COLUMNS,) float64.
        root: ``Bar.root_illiquidity`` now.
    """
    push = order[ORDER_PUSH] + order[ORDER_PUSH + 1] + order[ORDER_PUSH + 2] + order[_PERMANENT]
    return root * push


@kernel
def _unbounded_shift(order, notional, root, rules):  # type: ignore[no-untyped-def]
    push = rules.push_0 + rules.push_1 + rules.push_2 + rules.push_permanent
    return standing_shift(order, root) + 0.5 * root * root * push * notional


@kernel
def fill_shift(order, notional, root, rules):  # type: ignore[no-untyped-def]
    """Signed fraction of the price's worth that a fill pays on top of spread and temporary impact.

    Args:
        order: (ORDER_COLUMNS,) float64, before the fill.
        notional: settle currency, signed, > 0 buys; at the price before spread and impact.
        root: ``Bar.root_illiquidity`` now.
        rules: ``AccountRules``.
    """
    return min(max(_unbounded_shift(order, notional, root, rules), -MAX_SHIFT), MAX_SHIFT)


@kernel
def leave_push(order, notional, root, rules):  # type: ignore[no-untyped-def]
    """Leave a fill's push in an order row, in place; the arguments are those of :func:`fill_shift`.

    A fill that would have been shifted by more than ``MAX_SHIFT`` against itself paid less than its push is
    worth, and leaves none.
    """
    shift = _unbounded_shift(order, notional, root, rules)
    if abs(shift) > MAX_SHIFT and shift * notional > 0.0:
        return
    pushed = root * notional
    order[ORDER_PUSH] += rules.push_0 * pushed
    order[ORDER_PUSH + 1] += rules.push_1 * pushed
    order[ORDER_PUSH + 2] += rules.push_2 * pushed
    order[_PERMANENT] += rules.push_permanent * pushed
