import re
import signal
import subprocess

import check
from check import PARAMETERS

COMMAND = [
    PARAMETERS.program, "--no-defaults", "--batch", "--skip-column-names", "--default-character-set=utf8mb4",
    "--max-allowed-packet=64M", "-h", PARAMETERS.host, "-P", str(PARAMETERS.port), "-u", PARAMETERS.user,
    *([f"-p{PARAMETERS.password}"] if PARAMETERS.password else []), *(["--ssl"] if PARAMETERS.tls else ["--skip-ssl"]),
    PARAMETERS.database,
]


def mariadb(script, *options):
    done = subprocess.run([*COMMAND, *options], input=script.encode(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def login():
    database, cipher = mariadb("select database(); show session status like 'Ssl_cipher';")
    assert database == PARAMETERS.database
    return cipher.split("\t")[1] != ""


def prepared():
    script = "prepare s from 'select ? + ?'; set @one = 1;" + "".join(f"set @n = {n}; execute s using @n, @one;" for n in range(20))
    return mariadb(script)


def transaction():
    return mariadb("""
        create temporary table t (n int) engine = innodb;
        begin; insert into t values (1); rollback;
        begin; insert into t values (2); commit;
        select n from t;""")


def error():
    script = """create temporary table t (n int primary key);
        selec 1;
        select * from nothing;
        insert into t values (1), (1);
        select 7;"""
    done = subprocess.run([*COMMAND, "--force"], input=script.encode(), capture_output=True, timeout=120)
    numbers = [line.split(" at line")[0] for line in done.stderr.decode().splitlines() if line.startswith("ERROR")]
    return [numbers, done.stdout.decode().split()]


def cancel():
    sleeping = subprocess.Popen([*COMMAND, "--force", "-e", "select sleep(60); select 7"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    active = "select count(*) from information_schema.processlist where info like 'select sleep%';"
    check.until(lambda: mariadb(active) == ["1"])
    sleeping.send_signal(signal.SIGINT)
    out, err = sleeping.communicate(timeout=30)
    return [out.decode().split(), "ERROR 1317" in err.decode()]


def big_result():
    return check.summary(mariadb("""
        select repeat(char(97 + a.id % 26), 1000) from events.events a join events.events b on b.id <= 100""", "--quick"))


def big_parameter():
    return mariadb(f"select length(x), md5(x) from (select '{check.BIG_PARAMETER}' x) t")


def unicode():
    return mariadb(f"select x, char_length(x) from (select '{check.UNICODE}' x) t")


def reconnect():
    lines = mariadb("select connection_id();\nconnect\nselect connection_id();\nselect 7;")
    return [lines[0] != lines[-2], lines[-1]]


version = subprocess.run([PARAMETERS.program, "--version"], capture_output=True, text=True).stdout
check.run(
    re.search(r"\d+\.\d+\.\d+", version)[0],
    [login, prepared, transaction, error, cancel, big_result, big_parameter, unicode, reconnect],
)
