"""What a client program is made of.

It gets its parameters as JSON in its only argument, runs each check and prints a JSON line for each: what it got, or how
it failed. run.py compares the lines of a run against the server itself with those of a run through the relay, so what a
check returns must not depend on who is logged in where.
"""

import hashlib
import json
import sys
import threading
import time
import types

PARAMETERS = types.SimpleNamespace(**json.loads(sys.argv[1]))
BIG_RESULT = {"rows": 100_000, "bytes": 100_000_000}
BIG_PARAMETER = "p" * 20_000_000
UNICODE = "片山 葵 · žluťoučký · 𝄞🐘 · \u202eعربي"


def summary(values):
    """Number, length and hash of many strings."""
    digest, rows, size = hashlib.sha256(), 0, 0
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        digest.update(data)
        rows, size = rows + 1, size + len(data)
    assert {"rows": rows, "bytes": size} == BIG_RESULT, (rows, size)
    return [rows, size, digest.hexdigest()]


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.02)


def in_background(function):
    """Runs it in a thread; the returned function waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()

    def result():
        thread.join(60)
        return results[0]

    return result


def report(check, **what):
    print(json.dumps({"check": check, **what}), flush=True)


def run(version, checks):
    report("version", got=version)
    only = getattr(PARAMETERS, "only", None)
    for check in checks:
        if only and check.__name__ != only:
            continue
        try:
            report(check.__name__, got=check())
        except Exception as error:  # any failure is a finding; the others still run
            report(check.__name__, failed=f"{type(error).__name__}: {error}")
