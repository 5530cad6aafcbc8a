"""The checks of the Python drivers for MySQL, which share an interface (PEP 249)."""

import check
from check import PARAMETERS

# Rows of 1,000 bytes from the sample table, 1,000 rows of it against 100.
BIG_RESULT = "select repeat(char(97 + a.id % 26), 1000) from events.events a join events.events b on b.id <= 100"
ACTIVE = "select count(*) from information_schema.processlist where info like 'select sleep%'"
TLS = "show session status like 'Ssl_cipher'"


# What a client and its server think of the session's text.
TEXT = "select @@character_set_client, @@character_set_results, @@collation_connection, hex('\u00e9')"
# Each with a collation of its own, the default of the server for the first.
CHARACTER_SETS = [
    {"charset": "utf8mb4"}, {"charset": "latin1"}, {"charset": "latin2"}, {"charset": "utf8mb4", "collation": "utf8mb4_bin"},
    {"charset": "utf8mb4", "collation": "utf8mb4_unicode_ci"}, {"charset": "utf8mb4", "collation": "utf8mb4_0900_as_cs"},
]


def number(error):
    """Of the error; mysql.connector does not always have it as its first argument."""
    return getattr(error, "errno", None) or error.args[0]


class Driver:
    """One driver: `connect` opens a connection, `connection_id` tells the server's number of it. What a driver does not
    have it leaves out: `prepared_cursor`, `several` (the results of several statements in one), the ways to start a
    session anew, by name, and `local_infile` (a connection offers local files only when told to)."""

    def __init__(self, version, connect, connection_id, prepared_cursor=None, several=None, anew=None, local_infile=False):
        self.version, self.connect, self.connection_id = version, connect, connection_id
        self.prepared_cursor, self.results_of, self.ways_anew = prepared_cursor, several, anew or {}
        self.offers_files = local_infile

    def run(self):
        checks = [
            self.login, *([self.prepared] if self.prepared_cursor else []), self.transaction, self.error, self.cancel,
            self.big_result, self.big_parameter, self.unicode, self.character_sets,
            *([self.several] if self.results_of else []), *([self.anew] if self.ways_anew else []),
            *([self.local_infile] if self.offers_files else []), self.reconnect,
        ]
        check.run(self.version, checks)

    def rows(self, connection, sql, parameters=None):
        cursor = connection.cursor()
        cursor.execute(sql, parameters)
        return [list(row) for row in cursor.fetchall()] if cursor.description else []

    def error_of(self, connection, sql):
        try:
            self.rows(connection, sql)
            return "no error"
        except Exception as error:  # every driver has its own classes; the number says what it is
            return number(error)

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
        connection = self.connect()
        victim = self.connection_id(connection)

        def kill():
            other = self.connect()
            check.until(lambda: self.rows(other, ACTIVE) == [[1]])
            self.rows(other, f"kill query {victim}")

        killed = check.in_background(kill)
        answer = self.error_of(connection, "select sleep(60)")
        killed()
        return [answer, self.rows(connection, "select 7")]

    def big_result(self):
        return check.summary(row[0] for row in self.rows(self.connect(), BIG_RESULT))

    def big_parameter(self):
        return self.rows(self.connect(), "select length(x), sha2(x, 256) from (select %s x) t", (check.BIG_PARAMETER,))

    def unicode(self):
        return self.rows(self.connect(), "select x, char_length(x) from (select %s x) t", (check.UNICODE,))

    def character_sets(self):
        def answer(options):
            try:
                return self.rows(self.connect(**options), TEXT)
            except Exception as error:
                return str(error)

        return [answer(options) for options in CHARACTER_SETS]

    def several(self):
        connection = self.connect()
        sql = "select 1; create temporary table m (n int); insert into m values (1), (2); select n from m; selec 2; select 3"
        results = []
        try:
            for result in self.results_of(connection, sql):
                results.append(result)
        except Exception as error:
            results.append(number(error))
        return [results, self.rows(connection, "select 7")]

    def anew(self):
        answers = {}
        for name, start_anew in self.ways_anew.items():
            connection = self.connect()
            self.rows(connection, "create temporary table left_over (n int)")
            self.rows(connection, "set @kept = 1, sql_mode = ''")
            start_anew(connection)
            kept = self.rows(connection, f"select @kept, @@sql_mode = '', database() = '{PARAMETERS.database}'")
            answers[name] = [kept, self.error_of(connection, "select * from left_over"), self.rows(connection, TEXT)]
        return answers

    def local_infile(self):
        # The relay takes the offer away; without one the server refuses the statement by itself.
        connection = self.connect(local_infile=not PARAMETERS.tls)
        self.rows(connection, "create temporary table l (line text)")
        refused = self.error_of(connection, "load data local infile '/dev/null' into table l")
        return [refused, self.rows(connection, "select 7")]

    def reconnect(self):
        connection, other = self.connect(), self.connect()
        self.rows(other, f"kill {self.connection_id(connection)}")
        lost = self.error_of(connection, "select 1") != "no error"
        return [lost, self.rows(self.connect(), "select 7")]
