"""Dumps the sample database, restores it into the database of this run with two jobs, and dumps that again."""

import os
import subprocess
import tempfile

import check
from check import PARAMETERS

ENVIRONMENT = {**os.environ, "PGPASSWORD": PARAMETERS.password or "", "PGSSLMODE": "require" if PARAMETERS.tls else "disable"}


def run(program, *options):
    command = [program, "-w", "-h", PARAMETERS.host, "-p", str(PARAMETERS.port), "-U", PARAMETERS.user]
    done = subprocess.run([*command, *options], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def text(database):
    """A dump as text, without the random key in it that newer versions of pg_dump write."""
    dump = run("pg_dump", "--no-owner", "--no-acl", "-d", database, "-t", "orders")
    return [line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def login():
    return text(PARAMETERS.sample)


def round_trip():
    with tempfile.TemporaryDirectory() as folder:
        run("pg_dump", "-Fd", "-j2", "-f", f"{folder}/dump", "-t", "orders", "-d", PARAMETERS.sample)
        run("pg_restore", "-j2", "--no-owner", "--no-acl", "-d", PARAMETERS.database, f"{folder}/dump")
    assert text(PARAMETERS.database) == text(PARAMETERS.sample)
    return len(text(PARAMETERS.database)) > 1000


check.run(
    subprocess.run(["pg_dump", "--version"], capture_output=True, text=True).stdout.split()[2], [login, round_trip]
)
