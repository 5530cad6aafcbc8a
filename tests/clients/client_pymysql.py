import importlib.metadata
import ssl

import pymysql

from check import PARAMETERS
from mysql_checks import Driver


def connect():
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return pymysql.connect(
        host=PARAMETERS.host, port=PARAMETERS.port, user=PARAMETERS.user, password=PARAMETERS.password or "",
        database=PARAMETERS.database, autocommit=True, ssl=context if PARAMETERS.tls else None,
        ssl_disabled=not PARAMETERS.tls, max_allowed_packet=64 << 20,
    )


# It prepares nothing in the server.
Driver(importlib.metadata.version("pymysql"), connect, lambda connection: connection.thread_id()).run()
