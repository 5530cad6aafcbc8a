"""Dumps the sample database, restores it into the database of this run, and dumps that again."""

import re
import subprocess

import check
from check import PARAMETERS

# Oracle's programs or MariaDB's, which understand different options.
ORACLE = PARAMETERS.program == "mysqldump"
if ORACLE:
    TLS = "--ssl-mode=REQUIRED" if PARAMETERS.tls else "--ssl-mode=DISABLED"
    # What MariaDB does not have.
    MORE = ["--column-statistics=0", "--set-gtid-purged=OFF"]
else:
    TLS = "--ssl" if PARAMETERS.tls else "--skip-ssl"
    MORE = []
OPTIONS = [
    "--no-defaults", "--default-character-set=utf8mb4", "-h", PARAMETERS.host, "-P", str(PARAMETERS.port), "-u", PARAMETERS.user,
    *([f"-p{PARAMETERS.password}"] if PARAMETERS.password else []), TLS,
]


def run(program, *options, script=""):
    done = subprocess.run([program, *OPTIONS, *options], input=script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dump(database):
    return run(PARAMETERS.program, *MORE, "--single-transaction", "--skip-comments", "--no-tablespaces", database, "events")


def login():
    return dump(PARAMETERS.sample)


def round_trip():
    run("mysql" if ORACLE else "mariadb", PARAMETERS.database, script=dump(PARAMETERS.sample))
    assert dump(PARAMETERS.database) == dump(PARAMETERS.sample)
    return "片山 葵" in dump(PARAMETERS.database)


version = subprocess.run([PARAMETERS.program, "--version"], capture_output=True, text=True).stdout
check.run(re.search(r"(?:Distrib|Ver) (\d+\.\d+\.\d+)", version)[1], [login, round_trip])
