"""A command that fills a prefix cache group by group, to be killed on the way."""

import sys


def main(arguments):
    sys.path.append(arguments[1])
    import test_prefix_cache as case

    made = case.cache(arguments[0])
    fill(made, case)
    return 0


def fill(made, case):
    for table in (made.frames, made.text):
        for group in range(table.groups):
            case.fill(table, [group])
