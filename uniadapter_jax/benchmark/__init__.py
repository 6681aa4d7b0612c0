"""The benchmark: a grid of runs, one result each, and a report; `__main__` is the command.

`grid` says what is run, `runner` in which order, `worker` runs one in a process of its own, `cell`
and `costs` are what is kept of it.
"""
