"""A local exchange that speaks Binance's USD-M futures protocol and books through the kernel.

``python -m perpgym.envs.exchange`` starts it; ``docs/exchange.md`` says how any ccxt program trades on it.
"""
