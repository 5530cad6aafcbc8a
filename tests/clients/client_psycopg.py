import psycopg

import check
from check import PARAMETERS

ACTIVE = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'"


def connect():
    return psycopg.connect(
        host=PARAMETERS.host, port=PARAMETERS.port, user=PARAMETERS.user, password=PARAMETERS.password,
        dbname=PARAMETERS.database, sslmode="require" if PARAMETERS.tls else "disable", autocommit=True,
    )


def value(connection, sql, parameters=None, **options):
    return connection.execute(sql, parameters, **options).fetchone()[0]


def state(connection, sql):
    try:
        connection.execute(sql)
        return "no error"
    except psycopg.Error as error:
        return error.sqlstate


def login():
    with connect() as connection:
        assert value(connection, "select current_database()") == PARAMETERS.database
        return value(connection, "select ssl from pg_stat_ssl where pid = pg_backend_pid()")


def prepared():
    with connect() as connection:
        sums = [value(connection, "select %s::int + %s::int", (n, 1), prepare=True) for n in range(20)]
        return [sums, value(connection, "select count(*) from pg_prepared_statements")]


def transaction():
    with connect() as connection:
        connection.execute("create temp table t (n int)")
        with connection.transaction(force_rollback=True):
            connection.execute("insert into t values (1)")
        with connection.transaction():
            connection.execute("insert into t values (2)")
        return value(connection, "select array_agg(n) from t")


def error():
    with connect() as connection:
        connection.execute("create temp table t (n int primary key)")
        states = [state(connection, sql) for sql in ("selec 1", "select 1 / 0", "insert into t values (1), (1)")]
        return [states, value(connection, "select 7")]


def cancel():
    with connect() as connection, connect() as other:
        sleeping = check.in_background(lambda: state(connection, "select pg_sleep(60)"))
        check.until(lambda: value(other, ACTIVE) == 1)
        connection.cancel_safe()
        return [sleeping(), value(connection, "select 7")]


def big_result():
    with connect() as connection:
        rows = connection.execute("select repeat(chr(97 + n % 26), 1000) from generate_series(1, 100000) n")
        return check.summary(row[0] for row in rows)


def big_parameter():
    with connect() as connection:
        return connection.execute("select length(x), md5(x) from (select %s::text x) t", (check.BIG_PARAMETER,)).fetchone()


def unicode():
    with connect() as connection:
        return connection.execute("select x, length(x) from (select %s::text x) t", (check.UNICODE,)).fetchone()


def reconnect():
    with connect() as connection, connect() as other:
        other.execute("select pg_terminate_backend(%s)", (connection.info.backend_pid,))
        return [state(connection, "select 1") in ("57P01", None), value(connect(), "select 7")]


check.run(
    psycopg.__version__,
    [login, prepared, transaction, error, cancel, big_result, big_parameter, unicode, reconnect],
)
