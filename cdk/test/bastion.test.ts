import { readFileSync } from 'node:fs';
import * as path from 'node:path';
import { CfnParameter, Duration } from 'aws-cdk-lib';
import { Template } from 'aws-cdk-lib/assertions';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import { Key } from 'aws-cdk-lib/aws-kms';
import { RetentionDays } from 'aws-cdk-lib/aws-logs';
import * as rds from 'aws-cdk-lib/aws-rds';
import { Secret } from 'aws-cdk-lib/aws-secretsmanager';
import { describe, expect, test } from 'vitest';
import { BastionAudit, BastionCredential, BastionEngine, BastionSize, BastionTarget } from '../src';
import { ORDERS_ID, SHOP_ID, World } from './world';

/** The template of a world in which this was done. */
function template(make: (world: World) => void): Template {
  const world = new World();
  make(world);
  return Template.fromStack(world.stack);
}

describe('with a VPC and targets alone', () => {
  const made = () => {
    const world = new World();
    world.bastion();
    return world.deployed();
  };

  test('the environment is called as the construct, and its parameter is what the launcher reads', () => {
    const parameter = made().one('AWS::SSM::Parameter');
    expect(parameter).toMatchObject({ Name: '/bastion/prod', Type: 'String', Tier: 'Intelligent-Tiering' });
    expect(JSON.parse(parameter.Value)).toEqual({
      region: 'eu-west-1',
      cluster: 'bastion-prod',
      document: 'bastion-prod',
      idle_stop: '30m',
      max_age: '8h',
      access: {
        read: {
          task_definition: 'bastion-prod-read',
          subnets: ['subnet-0a', 'subnet-0b'],
          security_groups: ['ProdAccessreadSecurityGroup118C7EE4.GroupId'],
          target: {
            orders: {
              engine: 'postgres',
              host: 'orders.cluster-abc.eu-west-1.rds.amazonaws.com',
              port: 5432,
              credential: { rds_iam: { user: 'db_read' } },
            },
          },
        },
      },
    });
  });

  test('the task is small and for arm64, and its container has nothing that it does not need', () => {
    const definition = made().one('AWS::ECS::TaskDefinition');
    expect(definition).toMatchObject({
      Cpu: '256',
      Memory: '512',
      Family: 'bastion-prod-read',
      NetworkMode: 'awsvpc',
      RuntimePlatform: { CpuArchitecture: 'ARM64', OperatingSystemFamily: 'LINUX' },
    });
    expect(definition.ContainerDefinitions).toHaveLength(1);
    expect(definition.ContainerDefinitions[0]).toMatchObject({
      LinuxParameters: { Capabilities: { Drop: ['ALL'] } },
      ReadonlyRootFilesystem: true,
      User: '65532:65532',
    });
    expect(definition.ContainerDefinitions[0].PortMappings).toBeUndefined();
  });

  test('the session document has one port and takes no host', () => {
    const document = made().one('AWS::SSM::Document');
    expect(document).toMatchObject({ Name: 'bastion-prod', DocumentType: 'Session', UpdateMethod: 'NewVersion' });
    expect(document.Content).toMatchObject({
      schemaVersion: '1.0',
      sessionType: 'Port',
      properties: { portNumber: '7070', type: 'LocalPortForwarding', localPortNumber: '{{ localPortNumber }}' },
    });
    expect(Object.keys(document.Content.parameters)).toEqual(['localPortNumber']);
  });

  test('the task reaches the database and 443, and nothing reaches the task', () => {
    const deployed = made();
    const group = deployed.one('AWS::EC2::SecurityGroup', 'Access');
    expect(group.SecurityGroupIngress).toBeUndefined();
    expect(group.SecurityGroupEgress).toEqual([
      { CidrIp: '0.0.0.0/0', Description: 'AWS services', FromPort: 443, IpProtocol: 'tcp', ToPort: 443 },
    ]);
    const rule = { FromPort: 5432, ToPort: 5432, IpProtocol: 'tcp', Description: 'bastion to orders' };
    const task = 'ProdAccessreadSecurityGroup118C7EE4.GroupId';
    expect(deployed.one('AWS::EC2::SecurityGroupEgress')).toEqual({
      ...rule,
      GroupId: task,
      DestinationSecurityGroupId: 'sg-0db0db0db',
    });
    expect(deployed.one('AWS::EC2::SecurityGroupIngress')).toEqual({
      ...rule,
      GroupId: 'sg-0db0db0db',
      SourceSecurityGroupId: task,
    });
  });

  test('logs are kept for a year and outlive the stack', () => {
    template((world) => world.bastion()).hasResource('AWS::Logs::LogGroup', {
      Properties: { LogGroupName: '/bastion/prod', RetentionInDays: 365 },
      DeletionPolicy: 'Retain',
    });
  });

  test('policies have names that a permission set can refer to', () => {
    const names = Object.values(made().all('AWS::IAM::ManagedPolicy')).map((policy) => policy.ManagedPolicyName);
    expect(names).toEqual(['bastion-prod-developer', 'bastion-prod-break-glass']);
  });

  test('there are four alarms and a dashboard, no endpoint and no Lambda function', () => {
    const deployed = made();
    const alarms = Object.values(deployed.all('AWS::CloudWatch::Alarm')).map((alarm) => alarm.AlarmName);
    expect(alarms).toEqual([
      'bastion-prod-TaskTooLong',
      'bastion-prod-GuardBroken',
      'bastion-prod-RefusedIdentities',
      'bastion-prod-AuthenticationFailures',
    ]);
    expect(deployed.one('AWS::CloudWatch::Dashboard').DashboardName).toBe('bastion-prod');
    expect(deployed.all('AWS::EC2::VPCEndpoint')).toEqual({});
    expect(deployed.all('AWS::Lambda::Function')).toEqual({});
  });
});

describe('by choice', () => {
  test('x86-64, another size, times, sessions and no dashboard', () => {
    const world = new World();
    world.bastion({
      architecture: ecs.CpuArchitecture.X86_64,
      dashboard: false,
      idleStop: Duration.minutes(90),
      lanes: 4,
      localPassword: true,
      maxAge: Duration.hours(2),
      size: BastionSize.LARGE,
    });
    const deployed = world.deployed();
    const definition = deployed.one('AWS::ECS::TaskDefinition');
    expect(definition).toMatchObject({ Cpu: '1024', Memory: '2048', RuntimePlatform: { CpuArchitecture: 'X86_64' } });
    const [{ Environment: variables }] = definition.ContainerDefinitions;
    expect(JSON.parse(variables[0].Value)).toMatchObject({ idle_stop: '90m', local_password: true, max_age: '2h' });
    const environment = JSON.parse(deployed.one('AWS::SSM::Parameter').Value);
    expect(environment).toMatchObject({ idle_stop: '90m', max_age: '2h', lanes: 4 });
    expect(deployed.all('AWS::CloudWatch::Dashboard')).toEqual({});
  });

  test('certificate authorities of one’s own', () => {
    const extraCa = '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n';
    const world = new World();
    world.bastion({ extraCa });
    const [container] = world.deployed().one('AWS::ECS::TaskDefinition').ContainerDefinitions;
    expect(JSON.parse(container.Environment[0].Value).extra_ca).toBe(extraCa);
  });

  test('SQL in the audit log, with its literals or without', () => {
    const config = (audit?: BastionAudit) => {
      const world = new World();
      world.bastion({ audit });
      const [container] = world.deployed().one('AWS::ECS::TaskDefinition').ContainerDefinitions;
      return JSON.parse(container.Environment[0].Value);
    };
    const keys = (audit?: BastionAudit) => [config(audit).audit, config(audit).redact, config(audit).log_hash_key];
    expect(keys()).toEqual([undefined, undefined, undefined]);
    expect(keys(BastionAudit.CONNECTIONS)).toEqual([undefined, undefined, undefined]);
    expect(keys(BastionAudit.STATEMENTS)).toEqual(['statements', undefined, undefined]);
    expect(keys(BastionAudit.REDACTED_STATEMENTS)).toEqual(['statements', true, undefined]);
    expect(keys(BastionAudit.REDACTED_STATEMENTS_WITH_KEY)).toEqual(['statements', true, true]);
  });

  test('metrics of the relay, which the dashboard shows for each target and access level', () => {
    const world = new World();
    world.bastion({
      accessLevels: { read: {}, write: {} },
      metrics: true,
      targets: [world.target('db_read'), world.target('db_write', 'write')],
    });
    const deployed = world.deployed();
    const [container] = deployed.one('AWS::ECS::TaskDefinition', 'Accesswrite').ContainerDefinitions;
    expect(JSON.parse(container.Environment[0].Value).metrics).toBe('emf');
    const { widgets } = JSON.parse(deployed.one('AWS::CloudWatch::Dashboard').DashboardBody);
    const [open] = widgets.filter((widget: { properties: object }) => 'metrics' in widget.properties).slice(1);
    expect(open.properties.metrics.map((metric: unknown[]) => metric.slice(0, -1))).toEqual([
      ['Bastion', 'OpenConnections', 'access', 'read', 'env', 'prod', 'target', 'orders'],
      ['Bastion', 'OpenConnections', 'access', 'write', 'env', 'prod', 'target', 'orders'],
    ]);
  });

  test('a key for the logs, and how long they are kept', () => {
    template((world) => {
      const encryptionKey = Key.fromKeyArn(
        world.stack,
        'Key',
        'arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab',
      );
      world.bastion({ encryptionKey, logRetention: RetentionDays.ONE_WEEK });
    }).allResourcesProperties('AWS::Logs::LogGroup', {
      KmsKeyId: 'arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab',
      RetentionInDays: 7,
    });
  });

  test('a cluster that is there already', () => {
    const world = new World();
    const cluster = ecs.Cluster.fromClusterAttributes(world.stack, 'Shared', { clusterName: 'shared', vpc: world.vpc });
    world.bastion({ cluster });
    const deployed = world.deployed();
    expect(deployed.all('AWS::ECS::Cluster')).toEqual({});
    expect(JSON.parse(deployed.one('AWS::SSM::Parameter').Value).cluster).toBe('shared');
    const [run] = deployed.managedPolicy('Developer').Statement;
    expect(run?.Condition?.ArnEquals?.['ecs:cluster']).toBe('arn:aws:ecs:eu-west-1:123456789012:cluster/shared');
  });

  test('the endpoints that a task needs without a NAT gateway', () => {
    const world = new World();
    world.bastion({ interfaceEndpoints: true });
    const endpoints = Object.values(world.deployed().all('AWS::EC2::VPCEndpoint'));
    const services = endpoints.map(({ ServiceName }) => ServiceName.split('.').slice(3).join('.'));
    expect(services.sort()).toEqual(['ecr.api', 'ecr.dkr', 'logs', 's3', 'secretsmanager', 'ssmmessages', 'sts']);
  });

  test('isolated subnets where there are no others', () => {
    const world = new World();
    const vpc = ec2.Vpc.fromVpcAttributes(world.stack, 'Isolated', {
      vpcId: 'vpc-0e0e0e0e',
      availabilityZones: ['eu-west-1a'],
      isolatedSubnetIds: ['subnet-0e0e0e0e'],
    });
    world.bastion({ vpc });
    expect(JSON.parse(world.deployed().one('AWS::SSM::Parameter').Value).access.read.subnets).toEqual([
      'subnet-0e0e0e0e',
    ]);
  });

  test('an image that is built from this repository for the architecture of the task', () => {
    const world = new World();
    world.bastion({ image: undefined, architecture: ecs.CpuArchitecture.X86_64 });
    const { directory } = world.app.synth();
    const { dockerImages } = JSON.parse(readFileSync(path.join(directory, 'Test.assets.json'), 'utf8'));
    const sources = Object.values<{ source: object }>(dockerImages).map(({ source }) => source);
    expect(sources).toEqual([expect.objectContaining({ platform: 'linux/amd64' })]);
    const container = world.deployed().one('AWS::ECS::TaskDefinition').ContainerDefinitions[0];
    expect(container.Image['Fn::Sub']).toContain('cdk-hnb659fds-container-assets');
  });
});

describe('targets', () => {
  test('a cluster’s reader, a resource id of one’s own, a local port and another name', () => {
    const world = new World();
    const target = BastionTarget.cluster(world.orders, {
      credential: BastionCredential.rdsIam('db_read'),
      localPort: 25432,
      name: 'orders-ro',
      readOnly: false,
      reader: true,
    });
    world.bastion({ targets: [target] });
    const deployed = world.deployed();
    expect(JSON.parse(deployed.one('AWS::SSM::Parameter').Value).access.read.target).toEqual({
      'orders-ro': {
        engine: 'postgres',
        host: 'orders.cluster-ro-abc.eu-west-1.rds.amazonaws.com',
        port: 5432,
        local_port: 25432,
        read_only: false,
        credential: { rds_iam: { user: 'db_read' } },
      },
    });
    const [connect] = deployed
      .rolePolicies('TaskRole')
      .flatMap(({ Statement }) => Statement)
      .slice(1);
    expect(connect?.Resource).toBe(`arn:aws:rds-db:eu-west-1:123456789012:dbuser:${ORDERS_ID}/db_read`);
  });

  test('an instance of MySQL with an IAM token', () => {
    const world = new World();
    world.bastion({
      targets: [BastionTarget.instance(world.shop, { credential: BastionCredential.rdsIam('reader') })],
    });
    const deployed = world.deployed();
    const [connect] = deployed
      .rolePolicies('TaskRole')
      .flatMap(({ Statement }) => Statement)
      .slice(1);
    expect(connect?.Resource).toBe(`arn:aws:rds-db:eu-west-1:123456789012:dbuser:${SHOP_ID}/reader`);
  });

  test('files of the laptop are for MySQL, and only where they are asked for', () => {
    const world = new World();
    const options = { credential: BastionCredential.rdsIam('reader'), localInfile: true };
    world.bastion({ targets: [BastionTarget.instance(world.shop, options)] });
    const { target } = JSON.parse(world.deployed().one('AWS::SSM::Parameter').Value).access.read;
    expect(target.shop.local_infile).toBe(true);
    const other = new World();
    expect(() => other.bastion({ targets: [BastionTarget.cluster(other.orders, options)] })).toThrow(
      'engine "postgres" has no LOAD DATA LOCAL',
    );
  });

  test.each([
    ['pool.proxy-abc.eu-west-1.rds.amazonaws.com', undefined, 'prx-0123456789abcdef0', 'eu-west-1'],
    ['replica.abc.eu-central-1.rds.amazonaws.com', undefined, 'db-ABC', 'eu-central-1'],
    ['replica.abc.rds.us-gov-west-1.amazonaws.com', undefined, 'db-ABC', 'us-gov-west-1'],
    ['db.eu-central-1.rds.example.com', undefined, 'db-ABC', 'eu-west-1'],
    ['db.example.com', 'us-east-1', 'db-ABC', 'us-east-1'],
  ])('an IAM token for %s is for the region of the database', (host, region, resourceId, wanted) => {
    const world = new World();
    const credential = BastionCredential.rdsIam('db_read', { region });
    const peer = ec2.Peer.ipv4('10.1.2.0/24');
    const engine = BastionEngine.POSTGRES;
    world.bastion({ targets: [BastionTarget.endpoint(host, { name: 'db', engine, peer, credential, resourceId })] });
    const deployed = world.deployed();
    expect(JSON.parse(deployed.one('AWS::SSM::Parameter').Value).access.read.target.db.credential).toEqual({
      rds_iam: { user: 'db_read', ...(region && { region }) },
    });
    const [connect] = deployed
      .rolePolicies('TaskRole')
      .flatMap(({ Statement }) => Statement)
      .slice(1);
    expect(connect?.Resource).toBe(`arn:aws:rds-db:${wanted}:123456789012:dbuser:${resourceId}/db_read`);
  });

  test('whether a database takes IAM tokens may be decided when the stack is deployed', () => {
    const world = new World();
    const parameter = new CfnParameter(world.stack, 'IamAuth', { type: 'String' });
    const db = new rds.DatabaseInstance(world.stack, 'Db', {
      engine: rds.DatabaseInstanceEngine.POSTGRES,
      vpc: world.vpc,
    });
    (db.node.defaultChild as rds.CfnDBInstance).enableIamDatabaseAuthentication = parameter.valueAsString as never;
    expect(() =>
      world.bastion({ targets: [BastionTarget.instance(db, { credential: BastionCredential.rdsIam('db_read') })] }),
    ).not.toThrow();
  });

  test('a secret with a key of its own: read and decrypt, the latter through Secrets Manager only', () => {
    const world = new World();
    const encryptionKey = Key.fromKeyArn(
      world.stack,
      'Key',
      'arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab',
    );
    const secretCompleteArn = 'arn:aws:secretsmanager:eu-west-1:123456789012:secret:x-AbCdEf';
    const secret = Secret.fromSecretAttributes(world.stack, 'Secret', { secretCompleteArn, encryptionKey });
    world.bastion({ targets: [BastionTarget.cluster(world.orders, { credential: BastionCredential.secret(secret) })] });
    const statements = world
      .deployed()
      .rolePolicies('TaskRole')
      .flatMap(({ Statement }) => Statement);
    expect(statements.slice(1)).toEqual([
      {
        Action: ['secretsmanager:GetSecretValue', 'secretsmanager:DescribeSecret'],
        Effect: 'Allow',
        Resource: secretCompleteArn,
      },
      {
        Action: 'kms:Decrypt',
        Condition: { StringEquals: { 'kms:ViaService': 'secretsmanager.eu-west-1.amazonaws.com' } },
        Effect: 'Allow',
        Resource: 'arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab',
      },
    ]);
  });

  test('a Vault on a port of its own, and an endpoint by address and by security group', () => {
    const world = new World();
    const peer = ec2.SecurityGroup.fromSecurityGroupId(world.stack, 'CacheSg', 'sg-0cache00'.replace('cache', 'cac4e'));
    world.bastion({
      targets: [
        BastionTarget.endpoint('db.example.com', {
          name: 'db',
          engine: BastionEngine.MYSQL,
          peer: ec2.Peer.ipv4('10.1.2.3/32'),
          credential: BastionCredential.vault({
            address: 'https://vault.example.com:8200',
            role: 'r',
            creds: 'mysql/creds/read',
            login: 'caller',
            serverId: 'vault.example.com',
            stsRegion: 'eu-west-1',
            namespace: 'team',
            peer: ec2.Peer.ipv4('10.9.0.0/16'),
          }),
        }),
        BastionTarget.endpoint('cache.example.com', {
          name: 'cache',
          engine: BastionEngine.TCP,
          port: 6379,
          peer,
          credential: BastionCredential.client(),
        }),
      ],
    });
    const deployed = world.deployed();
    const { target } = JSON.parse(deployed.one('AWS::SSM::Parameter').Value).access.read;
    expect(target.db.credential).toEqual({
      vault: {
        address: 'https://vault.example.com:8200',
        auth: 'aws',
        role: 'r',
        creds: 'mysql/creds/read',
        login: 'caller',
        server_id: 'vault.example.com',
        sts_region: 'eu-west-1',
        namespace: 'team',
      },
    });
    expect(target.cache).toMatchObject({ engine: 'tcp', port: 6379, credential: 'client' });
    const group = deployed.one('AWS::EC2::SecurityGroup', 'Access');
    const rules = group.SecurityGroupEgress.map(({ CidrIp, FromPort }: { CidrIp: string; FromPort: number }) => [
      CidrIp,
      FromPort,
    ]);
    expect(rules).toEqual([
      ['0.0.0.0/0', 443],
      ['10.1.2.3/32', 3306],
      ['10.9.0.0/16', 8200],
    ]);
    expect(deployed.one('AWS::EC2::SecurityGroupEgress').FromPort).toBe(6379);
  });
});

test('a level with reasonRequired says so to the launcher, and only the break-glass policy has levels of that kind', () => {
  const world = new World();
  world.threeLevels();
  const deployed = world.deployed();
  const { access } = JSON.parse(deployed.one('AWS::SSM::Parameter').Value);
  expect(access.write.reason_required).toBe(true);
  expect(access.read.reason_required).toBeUndefined();
  const families = (id: string) =>
    deployed
      .managedPolicy(id)
      .Statement.filter(({ Action }) => Action === 'ecs:RunTask')
      .flatMap(({ Resource }) => Resource)
      .map((arn) => arn.split('/').pop());
  expect(families('Developer')).toEqual(['bastion-prod-read:*', 'bastion-prod-write:*']);
  expect(families('BreakGlass')).toEqual(['bastion-prod-read:*', 'bastion-prod-write:*', 'bastion-prod-admin:*']);
});

test('the policies fit into the 6144 characters that IAM allows, with ten access levels', () => {
  const world = new World();
  const levels = Array.from({ length: 10 }, (_, index) => `level-number-${index}`);
  world.bastion({
    accessLevels: Object.fromEntries(levels.map((level) => [level, {}])),
    targets: levels.map((level) => world.target('db_read', level)),
  });
  const deployed = world.deployed();
  for (const id of ['Developer', 'BreakGlass']) {
    expect(JSON.stringify(deployed.managedPolicy(id)).length).toBeLessThan(6144);
  }
});
