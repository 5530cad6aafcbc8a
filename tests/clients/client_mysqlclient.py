"""mysqlclient with MariaDB's C library, which it is compiled with here."""

import importlib.metadata

import MySQLdb

from check import PARAMETERS
from mysql_checks import Driver


def connect(**options):
    return MySQLdb.connect(
        host=PARAMETERS.host, port=PARAMETERS.port, user=PARAMETERS.user, password=PARAMETERS.password or "",
        database=PARAMETERS.database, autocommit=True, ssl_mode="REQUIRED" if PARAMETERS.tls else "DISABLED", **options,
    )


def several(connection, sql):
    cursor = connection.cursor()
    cursor.execute(sql)
    more = True
    while more:
        yield [list(row) for row in cursor.fetchall()]
        more = cursor.nextset()


Driver(
    importlib.metadata.version("mysqlclient"), connect, lambda connection: connection.thread_id(), several=several, local_infile=True,
    anew={"change_user": lambda connection: connection.change_user(PARAMETERS.user, PARAMETERS.password or "", PARAMETERS.database)},
).run()
