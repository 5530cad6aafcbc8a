import { Duration, Stack } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as rds from 'aws-cdk-lib/aws-rds';
import { describe, expect, test } from 'vitest';
import { BastionCredential, BastionEngine, BastionTarget } from '../src';
import { World } from './world';

/** What the construct says of these properties. */
function said(make: (world: World) => void): string {
  try {
    make(new World());
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error('nothing was said');
}

/** What it says of one endpoint with this difference to a good one. */
function saidOf(options: Partial<Parameters<typeof BastionTarget.endpoint>[1]>, host = 'db.example.com'): string {
  const good = {
    name: 'db',
    engine: BastionEngine.POSTGRES,
    peer: ec2.Peer.ipv4('10.1.2.0/24'),
    credential: BastionCredential.client(),
  };
  return said((world) => world.bastion({ targets: [BastionTarget.endpoint(host, { ...good, ...options })] }));
}

describe('a mistake is said with its value and its fix:', () => {
  test('a target without an engine', () => {
    const message = said((world) => {
      const db = rds.DatabaseInstance.fromDatabaseInstanceAttributes(world.stack, 'Reports', {
        instanceIdentifier: 'reports',
        instanceEndpointAddress: 'reports.abc.eu-west-1.rds.amazonaws.com',
        port: 5432,
        securityGroups: [ec2.SecurityGroup.fromSecurityGroupId(world.stack, 'Sg', 'sg-0a1b2c3d')],
      });
      world.bastion({ targets: [BastionTarget.instance(db, { credential: BastionCredential.rdsIam('db_read') })] });
    });
    expect(message).toBe(
      'bastion Test/Prod cannot be synthesized:\n' +
        '  - target "reports": the engine is unknown; set engine to BastionEngine.POSTGRES, .MYSQL or .TCP',
    );
  });

  test('an engine that the relay does not speak', () => {
    const message = said((world) => {
      const db = rds.DatabaseInstance.fromDatabaseInstanceAttributes(world.stack, 'Erp', {
        instanceIdentifier: 'erp',
        instanceEndpointAddress: 'erp.abc.eu-west-1.rds.amazonaws.com',
        engine: rds.DatabaseInstanceEngine.oracleEe({ version: rds.OracleEngineVersion.VER_19 }),
        port: 1521,
        securityGroups: [ec2.SecurityGroup.fromSecurityGroupId(world.stack, 'Sg', 'sg-0a1b2c3d')],
      });
      world.bastion({ targets: [BastionTarget.instance(db, { credential: BastionCredential.client() })] });
    });
    expect(message).toContain('target "erp": the relay cannot log in to engine "oracle-ee"; set engine to');
  });

  test('a target with both credential kinds', () => {
    const message = said((world) => {
      const iam = world.target('db_read');
      const secret = BastionTarget.cluster(world.orders, { credential: BastionCredential.secret(world.secret) });
      world.bastion({ targets: [iam, secret] });
    });
    expect(message).toContain(
      'target "orders": has two credentials in access level "read", rdsIam("db_read") and secret(Test/Ledger); ' +
        'keep one, give them different names, or put them into different access levels',
    );
  });

  test('an unknown access level', () => {
    const message = said((world) =>
      world.bastion({ targets: [world.target('db_read'), world.target('db_write', 'wrte')] }),
    );
    expect(message).toContain(
      'target "orders": access level "wrte" is unknown; use one of "read", or add it to accessLevels',
    );
  });

  test('an access level without a target, and none for everyday', () => {
    const empty = said((world) => world.bastion({ accessLevels: { read: {}, write: {} } }));
    expect(empty).toContain(`access level "write": no target belongs to it; remove it or set access: 'write' on one`);
    const glass = said((world) => world.bastion({ accessLevels: { admin: { breakGlass: true } } }));
    expect(glass).toContain('accessLevels: all are for break-glass; leave breakGlass out of at least one');
    expect(said((world) => world.bastion({ accessLevels: {} }))).toContain('accessLevels: there is none; leave it out');
  });

  test('a VPC without private subnets', () => {
    const message = said((world) => {
      const vpc = ec2.Vpc.fromVpcAttributes(world.stack, 'Public', {
        vpcId: 'vpc-0d0d0d0d',
        availabilityZones: ['eu-west-1a'],
        publicSubnetIds: ['subnet-0c0c0c0c'],
      });
      world.bastion({ vpc });
    });
    expect(message).toContain(
      'vpc: VPC vpc-0d0d0d0d has no private subnets; add PRIVATE_WITH_EGRESS or PRIVATE_ISOLATED subnets, or choose others with vpcSubnets',
    );
  });

  test('endpoints in imported subnets whose route tables are unknown', () => {
    const message = said((world) => {
      const vpc = ec2.Vpc.fromVpcAttributes(world.stack, 'Private', {
        vpcId: 'vpc-0d0d0d0d',
        availabilityZones: ['eu-west-1a'],
        isolatedSubnetIds: ['subnet-0c0c0c0c'],
      });
      world.bastion({ vpc, interfaceEndpoints: true });
    });
    expect(message).toContain('interfaceEndpoints: the route tables of the imported subnets are unknown');
  });

  test.each([
    ['a cluster', undefined],
    ['a cluster', false],
    ['an instance', undefined],
    ['an instance', false],
  ])('%s with iamAuthentication: %s', (kind, iamAuthentication) => {
    const message = said((world) => {
      const stack = new Stack(world.app, 'Data');
      const vpc = new ec2.Vpc(stack, 'Vpc');
      const credential = BastionCredential.rdsIam('db_read');
      const version = rds.AuroraPostgresEngineVersion.VER_17_4;
      const target =
        kind === 'a cluster'
          ? BastionTarget.cluster(
              new rds.DatabaseCluster(stack, 'Db', {
                engine: rds.DatabaseClusterEngine.auroraPostgres({ version }),
                writer: rds.ClusterInstance.serverlessV2('Writer'),
                vpc,
                iamAuthentication,
              }),
              { credential },
            )
          : BastionTarget.instance(
              new rds.DatabaseInstance(stack, 'Db', {
                engine: rds.DatabaseInstanceEngine.POSTGRES,
                vpc,
                iamAuthentication,
              }),
              { credential },
            );
      world.bastion({ targets: [target] });
    });
    expect(message).toContain(
      'target "db": IAM authentication is off, so the database refuses rdsIam("db_read"); ' +
        'set iamAuthentication: true on it, or use BastionCredential.secret()',
    );
  });

  test.each(['Prod', '1prod', 'prod env', 'prod/eu', '', 'p'.repeat(65)])('an environment called "%s"', (name) => {
    expect(said((world) => world.bastion({ environmentName: name }))).toContain(
      `environmentName: "${name}" is not a name; use 1 to 64 lower-case letters, digits, - and _, starting with a letter`,
    );
  });

  test('an access level or a target with a name that is none', () => {
    const level = said((world) =>
      world.bastion({ accessLevels: { 'Read Only': {} }, targets: [world.target('db_read', 'Read Only')] }),
    );
    expect(level).toContain('accessLevels: "Read Only" is not a name; use 1 to 64 lower-case letters');
    expect(saidOf({ name: 'Orders DB' })).toContain('target "Orders DB": that is not a name; use 1 to 64');
  });

  test('an imported database without its resource id, and a resource id that is none', () => {
    const iam = { credential: BastionCredential.rdsIam('db_read') };
    expect(saidOf(iam)).toContain(
      'target "db": the resource id is unknown, so the task role cannot be held to rdsIam("db_read"); ' +
        'set resourceId to DbClusterResourceId (cluster-…) or DbiResourceId (db-…) of the database, or to the id in the ' +
        'ARN of the proxy (prx-…)',
    );
    for (const resourceId of [
      '*',
      'orders',
      'cluster-abc',
      'prx-ABC',
      'prx-',
      'prx-a/b',
      'xprx-abc',
      'arn:aws:rds:eu-west-1:123456789012:cluster:orders',
    ]) {
      expect(saidOf({ ...iam, resourceId })).toContain(`target "db": resourceId "${resourceId}" is not a resource id`);
    }
  });

  test.each(['*', 'db_*', 'db_read/db_write', '${aws:username}', ''])('the database user "%s"', (user) => {
    const options = { credential: BastionCredential.rdsIam(user), resourceId: 'db-ABC' };
    expect(saidOf(options)).toContain(
      `target "db": database user "${user}" is not one user; name exactly one, without wildcards`,
    );
  });

  test('a region that is none', () => {
    const credential = BastionCredential.rdsIam('db_read', { region: 'Frankfurt' });
    expect(saidOf({ credential, resourceId: 'db-ABC' })).toContain(
      'target "db": region "Frankfurt" of rdsIam("db_read") is not a region; write it as in "eu-west-1"',
    );
  });

  test('a host, a port and an engine that do not fit', () => {
    expect(saidOf({}, 'https://db.example.com:5432')).toContain(
      `target "db": "https://db.example.com:5432" is not a host name; write the endpoint's DNS name, no scheme or port`,
    );
    expect(saidOf({ port: 70000 })).toContain('target "db": port 70000 is not a port; use 1 to 65535');
    expect(saidOf({ engine: BastionEngine.TCP })).toContain('target "db": the port is missing; set port');
    const tcp = { engine: BastionEngine.TCP, port: 6379 };
    expect(saidOf({ ...tcp, credential: BastionCredential.rdsIam('u') })).toContain(
      'target "db": engine "tcp" cannot log in with rdsIam("u"); use BastionCredential.client()',
    );
  });

  test('a Vault that is not https, and a login as the caller that is for no Vault', () => {
    const vault = (more: object) =>
      saidOf({ credential: BastionCredential.vault({ address: 'https://v', role: 'r', creds: 'c', ...more }) });
    expect(vault({ address: 'vault.internal:8200' })).toContain(
      'target "db": Vault address "vault.internal:8200" is not an https URL; write https://HOST:PORT',
    );
    expect(vault({ role: undefined })).toContain('target "db": vault("c") names no role to log in to; set role');
    expect(vault({ login: 'caller' })).toContain(
      'target "db": vault("c") with login "caller" has no serverId, so what a person signs would be good at every Vault',
    );
  });

  test('an imported database that no rule can let the task reach', () => {
    const message = said((world) => {
      const db = rds.DatabaseCluster.fromDatabaseClusterAttributes(world.stack, 'Far', {
        clusterIdentifier: 'far',
        engine: rds.DatabaseClusterEngine.AURORA_MYSQL,
      });
      world.bastion({ targets: [BastionTarget.cluster(db, { credential: BastionCredential.client() })] });
    });
    expect(message).toContain('target "far": the imported cluster has no endpoint; import it with');
    expect(message).toContain('target "far": the imported database has no security group');
  });

  test('no targets, an age of seconds, and too many sessions: all at once', () => {
    const message = said((world) => world.bastion({ targets: [], maxAge: Duration.seconds(30), lanes: 33 }));
    expect(message.split('\n').slice(1)).toEqual([
      '  - targets: there is none; add a BastionTarget',
      '  - lanes: 33 is not a number of sessions; use 1 to 32',
      '  - maxAge: 30 seconds is less than a minute; use at least Duration.minutes(1)',
      '  - access level "read": no target belongs to it; remove it or set access: \'read\' on one',
    ]);
  });
});
