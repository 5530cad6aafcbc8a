import os
import re
import subprocess

import check
from check import PARAMETERS

ENVIRONMENT = {**os.environ, "PGPASSWORD": PARAMETERS.password or "", "PGSSLMODE": "require" if PARAMETERS.tls else "disable"}


def pgbench(*options):
    command = ["pgbench", "-h", PARAMETERS.host, "-p", str(PARAMETERS.port), "-U", PARAMETERS.user, *options]
    done = subprocess.run([*command, PARAMETERS.database], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if re.match("number of (transactions|failed)", line)]


def login():
    return pgbench("-i", "-q", "-s", "1")


def prepared():
    return {mode: pgbench("-n", "-M", mode, "-c", "4", "-j", "2", "-t", "50") for mode in ("simple", "extended", "prepared")}


def reconnect():
    return pgbench("-n", "-S", "-C", "-c", "4", "-j", "2", "-t", "10")


check.run(
    subprocess.run(["pgbench", "--version"], capture_output=True, text=True).stdout.split()[2], [login, prepared, reconnect]
)
