"""Dumps the sample database, restores it into the database of this run, and dumps that again."""

import re
import subprocess

import check
from check import PARAMETERS

OPTIONS = [
    "--no-defaults", "--default-character-set=utf8mb4", "-h", PARAMETERS.host, "-P", str(PARAMETERS.port), "-u", PARAMETERS.user,
    *([f"-p{PARAMETERS.password}"] if PARAMETERS.password else []), *(["--ssl"] if PARAMETERS.tls else ["--skip-ssl"]),
]


def run(program, *options, script=""):
    done = subprocess.run([program, *OPTIONS, *options], input=script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dump(database):
    return run("mariadb-dump", "--single-transaction", "--skip-comments", "--no-tablespaces", database, "events")


def login():
    return dump(PARAMETERS.sample)


def round_trip():
    run("mariadb", PARAMETERS.database, script=dump(PARAMETERS.sample))
    assert dump(PARAMETERS.database) == dump(PARAMETERS.sample)
    return "片山 葵" in dump(PARAMETERS.database)


version = subprocess.run(["mariadb-dump", "--version"], capture_output=True, text=True).stdout
check.run(re.search(r"Distrib (\d+\.\d+\.\d+)", version)[1], [login, round_trip])
