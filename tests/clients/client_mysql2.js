'use strict';
const mysql = require('mysql2/promise');
const check = require('./check.js');

const { parameters } = check;
const ACTIVE = "select count(*) from information_schema.processlist where info like 'select sleep%'";

async function connect(options = {}) {
  const connection = await mysql.createConnection({
    host: parameters.host,
    port: parameters.port,
    user: parameters.user,
    password: parameters.password ?? undefined,
    database: parameters.database,
    ssl: parameters.tls ? { rejectUnauthorized: false } : undefined,
    rowsAsArray: true,
    charset: 'utf8mb4',
    ...options,
  });
  // A connection that ends is looked for where it is used.
  connection.on('error', () => {});
  return connection;
}

const rows = async (connection, sql, values) => (await connection.query(sql, values))[0];
const state = (connection, sql) =>
  connection.query(sql).then(() => 'no error', (error) => [error.errno, error.sqlState]);

check.run(require('mysql2/package.json').version, connect, {
  async login(connection) {
    check.equal(await rows(connection, 'select database()'), [[parameters.database]]);
    const [[, cipher]] = await rows(connection, "show session status like 'Ssl_cipher'");
    return cipher !== '';
  },
  async prepared(connection) {
    const sums = [];
    for (let n = 0; n < 20; n++) {
      sums.push((await connection.execute('select ? + ?', [n, 1]))[0][0][0]);
    }
    return [sums, await rows(connection, "show session status like 'Com_stmt_%e'")];
  },
  async transaction(connection) {
    for (const sql of [
      'create temporary table t (n int) engine = innodb',
      'begin', 'insert into t values (1)', 'rollback',
      'begin', 'insert into t values (2)', 'commit',
    ]) {
      await connection.query(sql);
    }
    return rows(connection, 'select n from t');
  },
  async error(connection) {
    await connection.query('create temporary table t (n int primary key)');
    const states = [];
    for (const sql of ['selec 1', 'select * from nothing', 'insert into t values (1), (1)']) {
      states.push(await state(connection, sql));
    }
    return [states.map(([number, sqlState]) => `${number} ${sqlState}`), await rows(connection, 'select 7')];
  },
  async cancel(connection) {
    const other = await connect();
    const sleeping = state(connection, 'select sleep(60)');
    await check.until(async () => (await rows(other, ACTIVE))[0][0] === 1);
    await other.query(`kill query ${connection.threadId}`);
    const answer = [await sleeping, await rows(connection, 'select 7')];
    await other.end();
    return answer;
  },
  async big_result(connection) {
    const sql = 'select repeat(char(97 + a.id % 26), 1000) from events.events a join events.events b on b.id <= 100';
    return check.summary((await rows(connection, sql)).map(([value]) => value));
  },
  big_parameter: (connection) =>
    rows(connection, 'select length(x), sha2(x, 256) from (select ? x) t', [check.BIG_PARAMETER]),
  unicode: (connection) => rows(connection, 'select x, char_length(x) from (select ? x) t', [check.UNICODE]),
  async character_sets() {
    const answers = [];
    const names = 'select @@character_set_client, @@character_set_results, @@collation_connection, hex(?)';
    for (const charset of [undefined, 'latin1', 'LATIN2_CZECH_CS', 'UTF8MB4_BIN', 'UTF8MB4_UNICODE_CI', 'UTF8MB4_0900_AI_CI']) {
      try {
        const connection = await connect({ charset });
        answers.push(await rows(connection, names, ['é']));
        await connection.end();
      } catch (error) {
        answers.push(error.errno ?? error.message);
      }
    }
    return answers;
  },
  async several() {
    const connection = await connect({ multipleStatements: true });
    const sql = 'select 1; create temporary table m (n int); insert into m values (1), (2); select n from m';
    const [results] = await connection.query(sql);
    const answers = results.map((result) => (Array.isArray(result) ? result : result.affectedRows));
    answers.push(await state(connection, 'select 1; selec 2; select 3'), await rows(connection, 'select 7'));
    await connection.end();
    return answers;
  },
  // With the character set of the options and with the driver's own, with a database and without.
  async anew() {
    const { user, password, database } = parameters;
    const answers = {};
    const ways = {
      change_user: (connection) => connection.changeUser({ user, password: password ?? undefined, database }),
      change_nothing_else: (connection) => connection.changeUser({ user, password: password ?? undefined }),
      change_character_set: (connection) => connection.changeUser({ user, password: password ?? undefined, charset: 'latin2' }),
      reset: (connection) => connection.reset(),
    };
    for (const [name, startAnew] of Object.entries(ways)) {
      for (const charset of ['utf8mb4', 'latin1', undefined]) {
        const connection = await connect({ charset });
        await connection.query('create temporary table left_over (n int)');
        await connection.query("set @kept = 1, sql_mode = ''");
        await startAnew(connection);
        const session = `select @kept, @@sql_mode = '', @@character_set_client, @@character_set_results, @@collation_connection`;
        await connection.query(`use ${database}`);
        answers[`${name} ${charset}`] = [await rows(connection, session), await state(connection, 'select * from left_over')];
        await connection.end();
      }
    }
    return answers;
  },
  // What the server tells of its session beside its answers.
  async tracking(connection) {
    await connection.query("set session_track_system_variables = 'time_zone,autocommit,sql_mode', session_track_schema = on");
    const changes = [];
    for (const sql of ["set time_zone = '+01:00'", "set sql_mode = ''", `use ${parameters.database}`, 'set autocommit = 0']) {
      changes.push((await connection.query(sql))[0].stateChanges ?? null);
    }
    changes[2] = changes[2]?.schema === parameters.database;
    return changes;
  },
  async reconnect(connection) {
    const other = await connect();
    await other.query(`kill ${connection.threadId}`);
    const lost = (await state(connection, 'select 1')) !== 'no error';
    await other.end();
    const again = await connect();
    const answer = [lost, await rows(again, 'select 7')];
    await again.end();
    return answer;
  },
});
