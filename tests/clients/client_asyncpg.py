import asyncio

import asyncpg

import check
from check import PARAMETERS

ACTIVE = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'"


async def connect():
    return await asyncpg.connect(
        host=PARAMETERS.host, port=PARAMETERS.port, user=PARAMETERS.user, password=PARAMETERS.password,
        database=PARAMETERS.database, ssl="require" if PARAMETERS.tls else False,
    )


async def state(connection, sql):
    try:
        await connection.execute(sql)
        return "no error"
    except asyncpg.PostgresError as error:
        return error.sqlstate


async def login(connection):
    assert await connection.fetchval("select current_database()") == PARAMETERS.database
    return await connection.fetchval("select ssl from pg_stat_ssl where pid = pg_backend_pid()")


async def prepared(connection):
    statement = await connection.prepare("select $1::int + $2::int")
    return [await statement.fetchval(n, 1) for n in range(20)]


async def transaction(connection):
    await connection.execute("create temp table t (n int)")
    undone = connection.transaction()
    await undone.start()
    await connection.execute("insert into t values (1)")
    await undone.rollback()
    async with connection.transaction():
        await connection.execute("insert into t values (2)")
    return await connection.fetchval("select array_agg(n) from t")


async def error(connection):
    await connection.execute("create temp table t (n int primary key)")
    states = [await state(connection, sql) for sql in ("selec 1", "select 1 / 0", "insert into t values (1), (1)")]
    return [states, await connection.fetchval("select 7")]


async def cancel(connection):
    other = await connect()
    sleeping = asyncio.create_task(connection.execute("select pg_sleep(60)"))
    while await other.fetchval(ACTIVE) == 0:
        await asyncio.sleep(0.02)
    sleeping.cancel()
    await asyncio.wait([sleeping])
    while await other.fetchval(ACTIVE) > 0:
        await asyncio.sleep(0.02)
    return [sleeping.cancelled(), await connection.fetchval("select 7")]


async def big_result(connection):
    rows = await connection.fetch("select repeat(chr(97 + n % 26), 1000) from generate_series(1, 100000) n")
    return check.summary(row[0] for row in rows)


async def big_parameter(connection):
    return list(await connection.fetchrow("select length(x), md5(x) from (select $1::text x) t", check.BIG_PARAMETER))


async def unicode(connection):
    return list(await connection.fetchrow("select x, length(x) from (select $1::text x) t", check.UNICODE))


async def reconnect(connection):
    await (await connect()).execute(f"select pg_terminate_backend({connection.get_server_pid()})")
    while not connection.is_closed():
        await asyncio.sleep(0.02)
    return await (await connect()).fetchval("select 7")


def with_connection(name):
    async def alone():
        connection = await connect()
        try:
            return await asyncio.wait_for(globals()[name](connection), 120)
        finally:
            connection.terminate()

    function = lambda: asyncio.run(alone())
    function.__name__ = name
    return function


CHECKS = "login prepared transaction error cancel big_result big_parameter unicode reconnect"
check.run(asyncpg.__version__, [with_connection(name) for name in CHECKS.split()])
