import importlib.metadata
import ssl

import pymysql
from pymysql.constants import CLIENT

from check import PARAMETERS
from mysql_checks import Driver


def connect(**options):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return pymysql.connect(
        host=PARAMETERS.host, port=PARAMETERS.port, user=PARAMETERS.user, password=PARAMETERS.password or "",
        database=PARAMETERS.database, autocommit=True, ssl=context if PARAMETERS.tls else None,
        ssl_disabled=not PARAMETERS.tls, max_allowed_packet=64 << 20, client_flag=CLIENT.MULTI_STATEMENTS, **options,
    )


def several(connection, sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        more = True
        while more:
            yield [list(row) for row in cursor.fetchall()]
            more = cursor.nextset()


# It prepares nothing in the server and cannot start a session anew.
Driver(
    importlib.metadata.version("pymysql"), connect, lambda connection: connection.thread_id(), several=several, local_infile=True,
).run()
