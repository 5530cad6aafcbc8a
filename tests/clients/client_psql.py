import os
import signal
import subprocess

import check
from check import PARAMETERS

ENVIRONMENT = {
    **os.environ, "PGPASSWORD": PARAMETERS.password or "", "PGSSLMODE": "require" if PARAMETERS.tls else "disable",
    "PGCLIENTENCODING": "UTF8",
}
COMMAND = [
    "psql", "-X", "-q", "-A", "-t", "-w", "-h", PARAMETERS.host, "-p", str(PARAMETERS.port), "-U", PARAMETERS.user,
    "-d", PARAMETERS.database, "-v", "VERBOSITY=sqlstate",
]


def psql(script, raw=False):
    done = subprocess.run(COMMAND, env=ENVIRONMENT, input=script.encode(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout if raw else done.stdout.decode().split()


def states(script):
    done = subprocess.run(COMMAND, env=ENVIRONMENT, input=script.encode(), capture_output=True, timeout=120)
    return done.stderr.decode().split("\n")[:-1] + done.stdout.decode().split()


def login():
    database, tls = psql("select current_database(); select ssl from pg_stat_ssl where pid = pg_backend_pid();")
    assert database == PARAMETERS.database
    return tls


def prepared():
    return psql("prepare sum as select $1::int + $2::int;" + "".join(f"execute sum({n}, 1);" for n in range(20)))


def transaction():
    return psql("""
        create temp table t (n int);
        begin; insert into t values (1); rollback;
        begin; insert into t values (2); commit;
        select array_agg(n) from t;""")


def error():
    return states("create temp table t (n int primary key); selec 1; select 1 / 0; insert into t values (1), (1); select 7;")


def cancel():
    sleeping = subprocess.Popen(
        [*COMMAND, "-c", "select pg_sleep(60)", "-c", "select 7"], env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )
    active = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%';"
    check.until(lambda: psql(active) == ["1"])
    sleeping.send_signal(signal.SIGINT)
    out, err = sleeping.communicate(timeout=30)
    return [err.split(), out.split()]


def big_result():
    lines = psql("select repeat(chr(97 + n % 26), 1000) from generate_series(1, 100000) n;", raw=True).splitlines()
    return check.summary(lines)


def big_parameter():
    return psql(f"select length(x), md5(x) from (select '{check.BIG_PARAMETER}'::text x) t;")


def unicode():
    return psql(f"select x, length(x) from (select '{check.UNICODE}'::text x) t;", raw=True).decode()


def reconnect():
    return psql("""
        select pg_backend_pid() as first \\gset
        \\c -
        select pg_backend_pid() <> :first, 7;""")


check.run(
    subprocess.run(["psql", "--version"], capture_output=True, text=True).stdout.split()[2],
    [login, prepared, transaction, error, cancel, big_result, big_parameter, unicode, reconnect],
)
