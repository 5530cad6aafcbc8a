"""The checks of the Python drivers for MySQL, which share an interface (PEP 249)."""

import check
from check import PARAMETERS

# Rows of 1,000 bytes from the sample table, 1,000 rows of it against 100.
BIG_RESULT = "select repeat(char(97 + a.id % 26), 1000) from events.events a join events.events b on b.id <= 100"
ACTIVE = "select count(*) from information_schema.processlist where info like 'select sleep%'"
TLS = "show session status like 'Ssl_cipher'"


class Driver:
    """One driver: `connect` opens a connection, `connection_id` tells the server's number of it."""

    def __init__(self, version, connect, connection_id, prepared_cursor=None):
        self.version, self.connect, self.connection_id = version, connect, connection_id
        self.prepared_cursor = prepared_cursor

    def run(self):
        prepared = [self.prepared] if self.prepared_cursor else []
        rest = [self.transaction, self.error, self.cancel, self.big_result, self.big_parameter, self.unicode, self.reconnect]
        check.run(self.version, [self.login, *prepared, *rest])

    def rows(self, connection, sql, parameters=None):
        cursor = connection.cursor()
        cursor.execute(sql, parameters)
        return [list(row) for row in cursor.fetchall()] if cursor.description else []

    def error_of(self, connection, sql):
        try:
            self.rows(connection, sql)
            return "no error"
        except Exception as error:  # every driver has its own classes; the number says what it is
            return error.args[0]

    def login(self):
        connection = self.connect()
        assert self.rows(connection, "select database()") == [[PARAMETERS.database]]
        return bool(self.rows(connection, TLS)[0][1])

    def prepared(self):
        connection = self.connect()
        cursor = self.prepared_cursor(connection)
        sums = []
        for n in range(20):
            cursor.execute("select ? + ?", (n, 1))
            sums.append(cursor.fetchall()[0][0])
        return [sums, self.rows(connection, "show session status like 'Com_stmt_execute'")]

    def transaction(self):
        connection = self.connect()
        self.rows(connection, "create temporary table t (n int) engine = innodb")
        for sql in ("begin", "insert into t values (1)", "rollback", "begin", "insert into t values (2)", "commit"):
            self.rows(connection, sql)
        return self.rows(connection, "select n from t")

    def error(self):
        connection = self.connect()
        self.rows(connection, "create temporary table t (n int primary key)")
        statements = ("selec 1", "select * from nothing", "insert into t values (1), (1)")
        return [[self.error_of(connection, sql) for sql in statements], self.rows(connection, "select 7")]

    def cancel(self):
        connection, other = self.connect(), self.connect()
        sleeping = check.in_background(lambda: self.error_of(connection, "select sleep(60)"))
        check.until(lambda: self.rows(other, ACTIVE) == [[1]])
        self.rows(other, f"kill query {self.connection_id(connection)}")
        return [sleeping(), self.rows(connection, "select 7")]

    def big_result(self):
        return check.summary(row[0] for row in self.rows(self.connect(), BIG_RESULT))

    def big_parameter(self):
        return self.rows(self.connect(), "select length(x), md5(x) from (select %s x) t", (check.BIG_PARAMETER,))

    def unicode(self):
        return self.rows(self.connect(), "select x, char_length(x) from (select %s x) t", (check.UNICODE,))

    def reconnect(self):
        connection, other = self.connect(), self.connect()
        self.rows(other, f"kill {self.connection_id(connection)}")
        lost = self.error_of(connection, "select 1") != "no error"
        return [lost, self.rows(self.connect(), "select 7")]
