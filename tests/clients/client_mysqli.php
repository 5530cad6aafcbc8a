<?php
declare(strict_types=1);
require __DIR__ . '/check.php';

const ACTIVE = "select count(*) from information_schema.processlist where info like 'select sleep%'";

function connect(?string $charset = null): mysqli
{
    $given = Check::$parameters;
    $connection = mysqli_init();
    if ($charset !== null) {
        $connection->options(MYSQLI_SET_CHARSET_NAME, $charset);
    }
    $flags = $given->tls ? MYSQLI_CLIENT_SSL | MYSQLI_CLIENT_SSL_DONT_VERIFY_SERVER_CERT : 0;
    $connection->real_connect($given->host, $given->user, $given->password, $given->database, $given->port, null, $flags);
    return $connection;
}

function rows(mysqli $connection, string $sql): array
{
    $result = $connection->query($sql);
    return $result instanceof mysqli_result ? $result->fetch_all() : [];
}

function state(mysqli $connection, string $sql): array
{
    try {
        rows($connection, $sql);
        return ['no error'];
    } catch (mysqli_sql_exception $error) {
        return [$error->getCode(), $error->getSqlState()];
    }
}

/** What a parameter of a prepared statement comes back as. */
function parameter(mysqli $connection, string $columns, string $parameter): array
{
    $statement = $connection->prepare("select $columns from (select ? x) t");
    $statement->execute([$parameter]);
    return $statement->get_result()->fetch_all();
}

// mysqlnd always offers local files and refuses by itself to send one: what the relay answers has nothing to compare with.
Check::run(PHP_VERSION, connect(...), [
    'login' => function (mysqli $connection): bool {
        Check::equal(rows($connection, 'select database()'), [[Check::$parameters->database]]);
        return rows($connection, "show session status like 'Ssl_cipher'")[0][1] !== '';
    },
    'prepared' => function (mysqli $connection): array {
        $statement = $connection->prepare('select ? + ?');
        $sums = [];
        for ($n = 0; $n < 20; $n++) {
            $statement->bind_param('ii', ...[$n, 1]);
            $statement->execute();
            $sums[] = $statement->get_result()->fetch_row()[0];
        }
        return [$sums, rows($connection, "show session status like 'Com_stmt_execute'")];
    },
    'transaction' => function (mysqli $connection): array {
        $connection->query('create temporary table t (n int) engine = innodb');
        foreach ([1, 2] as $n) {
            $connection->begin_transaction();
            $connection->query("insert into t values ($n)");
            $n === 1 ? $connection->rollback() : $connection->commit();
        }
        return rows($connection, 'select n from t');
    },
    'error' => function (mysqli $connection): array {
        $connection->query('create temporary table t (n int primary key)');
        $statements = ['selec 1', 'select * from nothing', 'insert into t values (1), (1)'];
        return [array_map(fn ($sql) => state($connection, $sql), $statements), rows($connection, 'select 7')];
    },
    'cancel' => function (mysqli $connection): array {
        $other = connect();
        $connection->query('select sleep(60)', MYSQLI_ASYNC);
        Check::until(fn () => rows($other, ACTIVE) === [['1']]);
        $other->query("kill query {$connection->thread_id}");
        try {
            $answer = $connection->reap_async_query()->fetch_all();
        } catch (mysqli_sql_exception $error) {
            $answer = $error->getCode();
        }
        return [$answer, rows($connection, 'select 7')];
    },
    'big_result' => function (mysqli $connection): array {
        $sql = 'select repeat(char(97 + a.id % 26), 1000) from events.events a join events.events b on b.id <= 100';
        $values = (fn ($result) => yield from array_map(fn ($row) => $row[0], $result->fetch_all()));
        return Check::summary($values($connection->query($sql)));
    },
    'big_parameter' => fn (mysqli $connection) => parameter($connection, 'length(x), sha2(x, 256)', str_repeat('p', 20_000_000)),
    'unicode' => fn (mysqli $connection) => parameter($connection, 'x, char_length(x)', Check::UNICODE),
    'character_sets' => function (): array {
        $names = 'select @@character_set_client, @@character_set_results, @@collation_connection';
        $answers = [];
        foreach (['latin1', 'utf8mb4', 'sjis'] as $charset) {
            $connection = connect($charset);
            $answers[$charset] = rows($connection, $names);
            $connection->set_charset('cp932');
            $answers[$charset][] = rows($connection, $names);
        }
        return $answers;
    },
    'several' => function (mysqli $connection): array {
        $connection->multi_query('select 1; create temporary table m (n int); insert into m values (1), (2); select n from m; selec 2; select 3');
        $answers = [];
        try {
            do {
                $result = $connection->store_result();
                $answers[] = $result ? $result->fetch_all() : $connection->affected_rows;
            } while ($connection->next_result());
        } catch (mysqli_sql_exception $error) {
            $answers[] = $error->getCode();
        }
        return [$answers, rows($connection, 'select 7')];
    },
    'anew' => function (mysqli $connection): array {
        $given = Check::$parameters;
        $connection->query('create temporary table left_over (n int)');
        $connection->query("set @kept = 1, sql_mode = ''");
        $connection->change_user($given->user, $given->password ?? '', $given->database);
        $session = "select @kept, @@sql_mode = '', database() = '{$given->database}', @@character_set_client,
            @@character_set_results, @@collation_connection";
        return [rows($connection, $session), state($connection, 'select * from left_over')];
    },
    'reconnect' => function (mysqli $connection): array {
        connect()->query("kill {$connection->thread_id}");
        return [state($connection, 'select 1') !== ['no error'], rows(connect(), 'select 7')];
    },
]);
