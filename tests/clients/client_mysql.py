import re
import signal
import subprocess

import check
from check import PARAMETERS

# Oracle's program or MariaDB's, which understand different options.
ORACLE = PARAMETERS.program == "mysql"
if ORACLE:
    # Words for the program itself, such as connect, have to be asked for.
    OPTIONS = ["--ssl-mode=REQUIRED" if PARAMETERS.tls else "--ssl-mode=DISABLED", "--commands"]
else:
    OPTIONS = ["--ssl" if PARAMETERS.tls else "--skip-ssl"]
COMMAND = [
    PARAMETERS.program, "--no-defaults", "--batch", "--skip-column-names", "--default-character-set=utf8mb4",
    "--max-allowed-packet=64M", "-h", PARAMETERS.host, "-P", str(PARAMETERS.port), "-u", PARAMETERS.user, *OPTIONS,
    *([f"-p{PARAMETERS.password}"] if PARAMETERS.password else []), PARAMETERS.database,
]
TEXT = "select @@character_set_client, @@character_set_results, @@collation_connection;"


def run(script, *options):
    done = subprocess.run([*COMMAND, *options], input=script.encode(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def run_all(script, *options):
    """Goes on behind errors; their numbers, and what was printed."""
    done = subprocess.run([*COMMAND, "--force", *options], input=script.encode(), capture_output=True, timeout=120)
    errors = [line.split(" at line")[0] for line in done.stderr.decode().splitlines() if line.startswith("ERROR")]
    return [errors, done.stdout.decode().splitlines()]


def login():
    database, cipher = run("select database(); show session status like 'Ssl_cipher';")
    assert database == PARAMETERS.database
    return cipher.split("\t")[1] != ""


def prepared():
    script = "prepare s from 'select ? + ?'; set @one = 1;" + "".join(f"set @n = {n}; execute s using @n, @one;" for n in range(20))
    return run(script)


def transaction():
    return run("""
        create temporary table t (n int) engine = innodb;
        begin; insert into t values (1); rollback;
        begin; insert into t values (2); commit;
        select n from t;""")


def error():
    return run_all("""create temporary table t (n int primary key);
        selec 1;
        select * from nothing;
        insert into t values (1), (1);
        select 7;""")


def cancel():
    sleeping = subprocess.Popen([*COMMAND, "--force", "-e", "select sleep(60); select 7"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    active = "select count(*) from information_schema.processlist where info like 'select sleep%';"
    check.until(lambda: run(active) == ["1"])
    sleeping.send_signal(signal.SIGINT)
    out, err = sleeping.communicate(timeout=30)
    return [out.decode().split(), "ERROR 1317" in err.decode()]


def big_result():
    return check.summary(run("""
        select repeat(char(97 + a.id % 26), 1000) from events.events a join events.events b on b.id <= 100""", "--quick"))


def big_parameter():
    return run(f"select length(x), sha2(x, 256) from (select '{check.BIG_PARAMETER}' x) t")


def unicode():
    return run(f"select x, char_length(x) from (select '{check.UNICODE}' x) t")


def character_sets():
    names = ("utf8mb4", "latin1", "latin2", "gbk")
    return {name: run(f"{TEXT}\nset names greek;\n{TEXT}", f"--default-character-set={name}") for name in names}


def several():
    return run_all("""delimiter //
        select 1; create temporary table m (n int); insert into m values (1), (2); select n from m; selec 2; select 3//
        select 7//""")


def anew():
    # MariaDB does not know the collation that Oracle's program has by default, and a reset gives the session that of whichever
    # connection its thread has served before.
    return run_all(f"""create temporary table left_over (n int);
        set @kept = 1, sql_mode = '';
        resetconnection
        select @kept, @@sql_mode = '', database() = '{PARAMETERS.database}';
        {TEXT}
        select * from left_over;
        select 7;""", "--default-character-set=latin1")


def local_infile():
    # The relay takes the offer away; without one the server refuses the statement by itself.
    # Oracle's program always makes one, and refuses by itself to send a file.
    script = "create temporary table l (line text); load data local infile '/dev/null' into table l; select 7;"
    return run_all(script, "--local-infile=0" if PARAMETERS.tls else "--local-infile=1")


def newer():
    script = """query_attributes first one second zwei
        select mysql_query_attribute_string('second'), mysql_query_attribute_string('third');
        select mysql_query_attribute_string('second');
        create temporary table v (v vector(3));
        insert into v values (string_to_vector('[1, 2.5, -3]'));
        select hex(v), vector_to_string(v), vector_dim(v) from v;
        show session status like 'Compression%';
        select 7;"""
    return [
        run_all(script),
        run("select 7", "--compression-algorithms=uncompressed,zstd", "--zstd-compression-level=7"),
        run("select sha2(repeat('x', 100000), 256)", "--compression-algorithms=zlib,zstd,uncompressed"),
    ]


def reconnect():
    lines = run("select connection_id();\nconnect\nselect connection_id();\nselect 7;")
    return [lines[0] != lines[-2], lines[-1]]


version = subprocess.run([PARAMETERS.program, "--version"], capture_output=True, text=True).stdout
checks = [login, prepared, transaction, error, cancel, big_result, big_parameter, unicode, character_sets, several]
check.run(re.search(r"\d+\.\d+\.\d+", version)[0], [*checks, *([anew, newer] if ORACLE else [local_infile]), reconnect])
