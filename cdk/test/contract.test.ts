import { readFileSync } from 'node:fs';
import * as path from 'node:path';
import { describe, expect, test } from 'vitest';
import { World } from './world';

// biome-ignore lint/suspicious/noExplicitAny: a task definition is any JSON
type Json = any;

/** Keys of CloudFormation as the ECS API spells them: `ReadonlyRootFilesystem` → `readonlyRootFilesystem`. */
function apiShape(value: Json, key = ''): Json {
  if (Array.isArray(value)) {
    return value.map((one) => apiShape(one));
  }
  // The keys of log options are no API names.
  if (typeof value !== 'object' || value === null || key === 'Options') {
    return value;
  }
  return Object.fromEntries(
    Object.entries(value).map(([name, one]) => [name.charAt(0).toLowerCase() + name.slice(1), apiShape(one, name)]),
  );
}

describe('task-definitions/bastion.json', () => {
  const text = readFileSync(path.join(__dirname, '../../task-definitions/bastion.json'), 'utf8');
  const values: Record<string, string> = {
    ACCESS: 'read',
    ENVIRONMENT: 'prod',
    IMAGE: 'bastion:test',
    REGION: 'eu-west-1',
    DB_HOST: 'orders.cluster-abc.eu-west-1.rds.amazonaws.com',
    DB_NAME: 'orders',
    DB_USER: 'db_read',
  };
  const written = JSON.parse(text.replace(/\$\{([A-Z_]+)\}/g, (whole, name) => values[name] ?? whole));
  const world = new World();
  world.bastion();
  const made = apiShape(world.deployed().one('AWS::ECS::TaskDefinition'));

  test('is what the construct makes of one PostgreSQL target', () => {
    const comparable = ({ executionRoleArn, taskRoleArn, containerDefinitions, ...rest }: Json) => ({
      ...rest,
      roles: [typeof executionRoleArn, typeof taskRoleArn],
      containerDefinitions: containerDefinitions.map(({ environment, logConfiguration, ...container }: Json) => ({
        ...container,
        environment: environment.map(({ name }: Json) => name),
        logDriver: logConfiguration.logDriver,
        logOptions: logConfiguration.options,
      })),
    });
    expect(comparable(made)).toEqual(comparable(written));
  });

  test('configures the relay as the construct does', () => {
    const config = ({ containerDefinitions: [{ environment }] }: Json) => JSON.parse(environment[0].value);
    const { target, ...rest } = config(made);
    const { target: writtenTarget, ...writtenRest } = config(written);
    expect(rest).toEqual(writtenRest);
    // The file names a database, which the construct leaves to the client.
    expect({ orders: { ...target.orders, database: 'orders' } }).toEqual(writtenTarget);
  });
});
