import mysql.connector

from check import PARAMETERS
from mysql_checks import Driver


def connect():
    return mysql.connector.connect(
        host=PARAMETERS.host, port=PARAMETERS.port, user=PARAMETERS.user, password=PARAMETERS.password or "",
        database=PARAMETERS.database, autocommit=True, ssl_disabled=not PARAMETERS.tls, use_pure=True,
    )


Driver(
    mysql.connector.__version__, connect, lambda connection: connection.connection_id,
    lambda connection: connection.cursor(prepared=True),
).run()
