"""Live trading: the desk that speaks to an exchange and the env that decides through it.

``broker`` is what an exchange must offer, ``desk`` keeps account and exchange the same, ``journal`` is what
survives a crash.
"""
