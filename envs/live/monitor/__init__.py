"""What people see of the live side: page, metrics, alerts, log and replay, all of it read from the journal.

Nothing here can disturb trading: the journal is opened read-only, in its own connection and thread or in
another process, and what fails here fails alone.
"""
