'use strict';
const mysql = require('mysql2/promise');
const check = require('./check.js');

const { parameters } = check;
const ACTIVE = "select count(*) from information_schema.processlist where info like 'select sleep%'";

async function connect() {
  const connection = await mysql.createConnection({
    host: parameters.host,
    port: parameters.port,
    user: parameters.user,
    password: parameters.password ?? undefined,
    database: parameters.database,
    ssl: parameters.tls ? { rejectUnauthorized: false } : undefined,
    rowsAsArray: true,
    charset: 'utf8mb4',
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
    rows(connection, 'select length(x), md5(x) from (select ? x) t', [check.BIG_PARAMETER]),
  unicode: (connection) => rows(connection, 'select x, char_length(x) from (select ? x) t', [check.UNICODE]),
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
