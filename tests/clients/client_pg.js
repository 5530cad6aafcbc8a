'use strict';
const { Client } = require('pg');
const check = require('./check.js');

const { parameters } = check;
const ACTIVE = "select count(*)::int n from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'";

async function connect() {
  const client = new Client({
    host: parameters.host,
    port: parameters.port,
    user: parameters.user,
    password: parameters.password ?? undefined,
    database: parameters.database,
    ssl: parameters.tls ? { rejectUnauthorized: false } : false,
  });
  // A connection that ends is looked for where it is used.
  client.on('error', () => {});
  await client.connect();
  return client;
}

async function row(client, text, values) {
  const result = await client.query({ text, values, rowMode: 'array' });
  return result.rows[0];
}

const state = (client, sql) => client.query(sql).then(() => 'no error', (error) => error.code);

check.run(require('pg/package.json').version, connect, {
  async login(client) {
    const [database, tls] = await row(
      client,
      'select current_database(), ssl from pg_stat_ssl where pid = pg_backend_pid()',
    );
    check.equal(database, parameters.database);
    return tls;
  },
  async prepared(client) {
    const sums = [];
    for (let n = 0; n < 20; n++) {
      const query = { name: 'sum', text: 'select $1::int + $2::int', values: [n, 1], rowMode: 'array' };
      sums.push((await client.query(query)).rows[0][0]);
    }
    return [sums, await row(client, 'select name from pg_prepared_statements')];
  },
  async transaction(client) {
    for (const sql of [
      'create temp table t (n int)',
      'begin', 'insert into t values (1)', 'rollback',
      'begin', 'insert into t values (2)', 'commit',
    ]) {
      await client.query(sql);
    }
    return row(client, 'select array_agg(n) from t');
  },
  async error(client) {
    await client.query('create temp table t (n int primary key)');
    const states = [];
    for (const sql of ['selec 1', 'select 1 / 0', 'insert into t values (1), (1)']) {
      states.push(await state(client, sql));
    }
    return [states, await row(client, 'select 7')];
  },
  async cancel(client) {
    const other = await connect();
    const sleeping = state(client, 'select pg_sleep(60)');
    await check.until(async () => (await row(other, ACTIVE))[0] === 1);
    await other.query(`select pg_cancel_backend(${client.processID})`);
    const answer = [await sleeping, await row(client, 'select 7')];
    await other.end();
    return answer;
  },
  async big_result(client) {
    const text = 'select repeat(chr(97 + n % 26), 1000) from generate_series(1, 100000) n';
    const result = await client.query({ text, rowMode: 'array' });
    return check.summary(result.rows.map(([value]) => value));
  },
  big_parameter: (client) =>
    row(client, 'select length(x), md5(x) from (select $1::text x) t', [check.BIG_PARAMETER]),
  unicode: (client) => row(client, 'select x, length(x) from (select $1::text x) t', [check.UNICODE]),
  async reconnect(client) {
    const other = await connect();
    await other.query(`select pg_terminate_backend(${client.processID})`);
    check.equal(['57P01', undefined].includes(await state(client, 'select 1')), true);
    await other.end();
    const again = await connect();
    const answer = await row(again, 'select 7');
    await again.end();
    return answer;
  },
});
