// The sibling of check.py for Node; see there.
'use strict';
const { createHash } = require('node:crypto');
const assert = require('node:assert');

const report = (check, what) => console.log(JSON.stringify({ check, ...what }));

module.exports = {
  parameters: JSON.parse(process.argv[2]),
  BIG_PARAMETER: 'p'.repeat(20_000_000),
  UNICODE: '片山 葵 · žluťoučký · 𝄞🐘 · \u202eعربي',
  equal: assert.deepStrictEqual,

  summary(values) {
    const digest = createHash('sha256');
    let size = 0;
    for (const value of values) {
      digest.update(value);
      size += Buffer.byteLength(value);
    }
    assert.deepStrictEqual([values.length, size], [100_000, 100_000_000]);
    return [values.length, size, digest.digest('hex')];
  },

  async until(condition) {
    const deadline = Date.now() + 30_000;
    while (!(await condition())) {
      assert(Date.now() < deadline, 'it never came to pass');
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  },

  // Each check gets a connection of its own.
  async run(version, connect, checks) {
    report('version', { got: version });
    const { only } = module.exports.parameters;
    for (const [name, check] of Object.entries(checks).filter(([name]) => !only || name === only)) {
      try {
        const client = await connect();
        report(name, { got: await check(client) });
        await client.end().catch(() => {});
      } catch (error) {
        report(name, { failed: `${error.name}: ${error.message}` });
      }
    }
    process.exit(0);
  },
};
