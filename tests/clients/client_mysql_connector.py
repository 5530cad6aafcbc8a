# The driver comes with OpenSSL of its own, newer than Debian's, which Python would load for ssl and hashlib.
import _mysql_connector  # noqa: F401, I001
import mysql.connector

from check import PARAMETERS
from mysql_checks import Driver


def connect(**options):
    return mysql.connector.connect(
        host=PARAMETERS.host, port=PARAMETERS.port, user=PARAMETERS.user, password=PARAMETERS.password or "",
        database=PARAMETERS.database, autocommit=True, ssl_disabled=not PARAMETERS.tls, use_pure=PARAMETERS.pure, **options,
    )


def several(connection, sql):
    cursor = connection.cursor()
    cursor.execute(sql)
    for _, result in cursor.fetchsets():
        yield [list(row) for row in result]


def change_user(connection):
    connection.cmd_change_user(PARAMETERS.user, PARAMETERS.password or "", PARAMETERS.database)


# It always offers local files and refuses by itself to send one.
Driver(
    mysql.connector.__version__, connect, lambda connection: connection.connection_id,
    lambda connection: connection.cursor(prepared=True), several,
    {"change_user": change_user, "reset": lambda connection: connection.cmd_reset_connection()},
).run()
