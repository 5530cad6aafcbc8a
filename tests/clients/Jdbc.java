import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;

/** The sibling of check.py for JDBC; DRIVER is postgresql, mariadb or mysql: java Jdbc.java DRIVER HOST PORT USER PASSWORD DATABASE TLS [CHECK] */
final class Jdbc {
    private static final String UNICODE = "片山 葵 · žluťoučký · 𝄞🐘 · \u202eعربي";
    private static final String TEXT =
        "select @@character_set_client, @@character_set_results, @@collation_connection, hex('\u00e9')";
    private final boolean postgres;
    /** Connector/J, and not MariaDB's driver. */
    private final boolean oracle;
    private final String url;
    private final String database;
    private final Properties properties = new Properties();

    private Jdbc(String[] arguments) {
        postgres = arguments[0].equals("postgresql");
        oracle = arguments[0].equals("mysql");
        database = arguments[5];
        url = "jdbc:" + arguments[0] + "://" + arguments[1] + ":" + arguments[2] + "/" + database;
        properties.setProperty("user", arguments[3]);
        properties.setProperty("password", arguments[4]);
        boolean tls = arguments[6].equals("true");
        if (postgres) {
            properties.setProperty("sslmode", tls ? "require" : "disable");
            properties.setProperty("prepareThreshold", "1");
        } else {
            if (oracle) {
                properties.setProperty("sslMode", tls ? "REQUIRED" : "DISABLED");
            } else {
                properties.setProperty("useSsl", Boolean.toString(tls));
                properties.setProperty("trustServerCertificate", "true");
                properties.setProperty("useResetConnection", "true");
            }
            properties.setProperty("useServerPrepStmts", "true");
            properties.setProperty("allowMultiQueries", "true");
        }
    }

    private interface Check {
        Object run(Connection connection) throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        Jdbc jdbc = new Jdbc(arguments);
        Map<String, Check> checks = new LinkedHashMap<>();
        checks.put("login", jdbc::login);
        checks.put("prepared", jdbc::prepared);
        checks.put("transaction", jdbc::transaction);
        checks.put("error", jdbc::error);
        checks.put("cancel", jdbc::cancel);
        checks.put("big_result", jdbc::bigResult);
        checks.put("big_parameter", jdbc::bigParameter);
        checks.put("unicode", jdbc::unicode);
        if (!jdbc.postgres) {
            checks.put("character_sets", jdbc::characterSets);
            checks.put("several", jdbc::several);
            checks.put("anew", jdbc::anew);
        }
        checks.put("reconnect", jdbc::reconnect);
        if (arguments.length > 7) {
            checks.keySet().retainAll(List.of(arguments[7]));
        } else {
            try (Connection connection = jdbc.connect()) {
                report("version", "got", connection.getMetaData().getDriverVersion().replaceAll("^mysql-connector-j-| .*$", ""));
            }
        }
        for (Map.Entry<String, Check> check : checks.entrySet()) {
            try (Connection connection = jdbc.connect()) {
                report(check.getKey(), "got", String.valueOf(check.getValue().run(connection)));
            } catch (Exception | AssertionError error) {
                report(check.getKey(), "failed", error.toString());
            }
        }
    }

    private Connection connect() throws SQLException {
        return DriverManager.getConnection(url, properties);
    }

    private Object login(Connection connection) throws SQLException {
        demand(value(connection, postgres ? "select current_database()" : "select database()").equals(database));
        return postgres
            ? value(connection, "select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            : !row(connection, "show session status like 'Ssl_cipher'").get(1).isEmpty();
    }

    private Object prepared(Connection connection) throws SQLException {
        List<Integer> sums = new ArrayList<>();
        String sql = postgres ? "select ?::int + ?::int" : "select ? + ?";
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int n = 0; n < 20; n++) {
                statement.setInt(1, n);
                statement.setInt(2, 1);
                try (ResultSet result = statement.executeQuery()) {
                    result.next();
                    sums.add(result.getInt(1));
                }
            }
            return sums + " " + (postgres ? value(connection, "select count(*) > 0 from pg_prepared_statements") : "");
        }
    }

    private Object transaction(Connection connection) throws SQLException {
        execute(connection, postgres ? "create temp table t (n int)" : "create temporary table t (n int)");
        connection.setAutoCommit(false);
        execute(connection, "insert into t values (1)");
        connection.rollback();
        execute(connection, "insert into t values (2)");
        connection.commit();
        connection.setAutoCommit(true);
        return value(connection, "select sum(n) from t");
    }

    private Object error(Connection connection) throws SQLException {
        execute(connection, (postgres ? "create temp" : "create temporary") + " table t (n int primary key)");
        List<String> states = new ArrayList<>();
        for (String sql : List.of("selec 1", "select * from nothing", "insert into t values (1), (1)")) {
            states.add(state(connection, sql));
        }
        return states + " " + value(connection, "select 7");
    }

    private Object cancel(Connection connection) throws Exception {
        String active = postgres
            ? "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'"
            : "select count(*) from information_schema.processlist where info like 'select sleep%'";
        try (Statement statement = connection.createStatement(); Connection other = connect()) {
            Thread canceller = new Thread(() -> {
                try {
                    while (value(other, active).equals("0")) {
                        Thread.sleep(20);
                    }
                    statement.cancel();
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
            });
            canceller.start();
            String state = "no error";
            try {
                statement.execute(postgres ? "select pg_sleep(60)" : "select sleep(60)");
            } catch (SQLException error) {
                state = error.getSQLState();
            }
            canceller.join();
            // Connector/J tells what it did itself or what the server said, whichever it sees first.
            return (oracle ? "" : state) + " " + value(connection, "select 7");
        }
    }

    private Object bigResult(Connection connection) throws Exception {
        String sql = postgres
            ? "select repeat(chr(97 + n % 26), 1000) from generate_series(1, 100000) n"
            : "select repeat(char(97 + a.id % 26), 1000) from events.events a join events.events b on b.id <= 100";
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        long rows = 0;
        long size = 0;
        try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(sql)) {
            while (result.next()) {
                byte[] row = result.getBytes(1);
                digest.update(row);
                rows++;
                size += row.length;
            }
        }
        demand(rows == 100_000 && size == 100_000_000);
        return rows + " " + size + " " + new BigInteger(1, digest.digest()).toString(16);
    }

    private Object bigParameter(Connection connection) throws SQLException {
        return parameter(connection, postgres ? "length(?), md5(?)" : "length(?), sha2(?, 256)", "p".repeat(20_000_000));
    }

    private Object unicode(Connection connection) throws SQLException {
        String answer = parameter(connection, "?, char_length(?)", UNICODE);
        demand(answer.startsWith(UNICODE));
        return answer;
    }

    private Object characterSets(Connection connection) throws SQLException {
        List<Object> answers = new ArrayList<>();
        answers.add(row(connection, TEXT));
        for (String collation : List.of("latin2_czech_cs", "utf8mb4_bin", "utf8mb4_unicode_ci", "utf8mb4_0900_as_cs")) {
            Properties more = new Properties();
            more.putAll(properties);
            more.setProperty(oracle ? "connectionCollation" : "sessionVariables", oracle ? collation : "collation_connection=" + collation);
            try (Connection other = DriverManager.getConnection(url, more)) {
                answers.add(row(other, TEXT));
            } catch (SQLException error) {
                answers.add(error.getErrorCode() + " " + error.getSQLState());
            }
        }
        return answers;
    }

    private Object several(Connection connection) throws SQLException {
        List<Object> answers = new ArrayList<>();
        String sql = "select 1; create temporary table m (n int); insert into m values (1), (2); select n from m";
        try (Statement statement = connection.createStatement()) {
            boolean rows = statement.execute(sql);
            while (rows || statement.getUpdateCount() != -1) {
                answers.add(rows ? "rows" : statement.getUpdateCount());
                rows = statement.getMoreResults();
            }
        }
        answers.add(state(connection, "select 1; selec 2; select 3"));
        answers.add(value(connection, "select 7"));
        return answers;
    }

    /** Methods of the drivers, which are not on the path together. */
    private Object anew(Connection connection) throws Exception {
        List<Object> answers = new ArrayList<>();
        for (String way : oracle ? List.of("changeUser", "resetServerState") : List.of("reset")) {
            try (Connection other = connect()) {
                execute(other, "create temporary table left_over (n int)");
                execute(other, "set @kept = 1, sql_mode = ''");
                if (way.equals("changeUser")) {
                    other.getClass().getMethod(way, String.class, String.class)
                        .invoke(other, properties.getProperty("user"), properties.getProperty("password"));
                } else {
                    other.getClass().getMethod(way).invoke(other);
                }
                answers.add(row(other, "select @kept, @@sql_mode = '', database() = '" + database + "'"));
                answers.add(row(other, TEXT));
                answers.add(state(other, "select * from left_over"));
            }
        }
        return answers;
    }

    private Object reconnect(Connection connection) throws Exception {
        try (Connection other = connect()) {
            String pid = value(connection, postgres ? "select pg_backend_pid()" : "select connection_id()");
            execute(other, postgres ? "select pg_terminate_backend(" + pid + ")" : "kill " + pid);
        }
        demand(!state(connection, "select 1").equals("no error"));
        try (Connection again = connect()) {
            return value(again, "select 7");
        }
    }

    private String parameter(Connection connection, String columns, String parameter) throws SQLException {
        String sql = "select " + (postgres ? columns.replace("?", "?::text") : columns);
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            statement.setString(1, parameter);
            statement.setString(2, parameter);
            try (ResultSet result = statement.executeQuery()) {
                result.next();
                return result.getString(1) + " " + result.getString(2);
            }
        }
    }

    private static String value(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(sql)) {
            result.next();
            return result.getString(1);
        }
    }

    private static List<String> row(Connection connection, String sql) throws SQLException {
        List<String> row = new ArrayList<>();
        try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(sql)) {
            result.next();
            for (int column = 1; column <= result.getMetaData().getColumnCount(); column++) {
                row.add(result.getString(column));
            }
        }
        return row;
    }

    private static void execute(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    private static String state(Connection connection, String sql) {
        try {
            execute(connection, sql);
            return "no error";
        } catch (SQLException error) {
            return String.valueOf(error.getSQLState());
        }
    }

    private static void demand(boolean condition) {
        if (!condition) {
            throw new AssertionError("not as it should be");
        }
    }

    private static void report(String check, String key, String value) {
        StringBuilder quoted = new StringBuilder();
        for (byte next : value.getBytes(StandardCharsets.UTF_16BE)) {
            quoted.append(quoted.length() % 6 == 0 ? "\\u" : "").append(String.format("%02x", next));
        }
        System.out.println("{\"check\": \"" + check + "\", \"" + key + "\": \"" + quoted + "\"}");
    }
}
