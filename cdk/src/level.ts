import { ArnFormat, Duration, Stack, Validations } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as iam from 'aws-cdk-lib/aws-iam';
import type { ILogGroup } from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';
import type { BastionAudit } from './audit';
import { BastionEngine } from './engine';
import type { Problems } from './problems';
import type { BastionSize } from './size';
import type { BastionTarget } from './target';

/** One access level. */
export interface LevelProps {
  readonly architecture: ecs.CpuArchitecture;
  readonly audit: BastionAudit;
  readonly environment: string;
  readonly executionRole: iam.IRole;
  readonly extraCa?: string;
  readonly idleStop: Duration;
  readonly image: ecs.ContainerImage;
  readonly level: string;
  readonly localPassword?: boolean;
  readonly logGroup: ILogGroup;
  readonly maxAge: Duration;
  readonly metrics: boolean;
  readonly problems: Problems;
  readonly size: BastionSize;
  readonly targets: BastionTarget[];
  readonly vpc: ec2.IVpc;
}

/** What the agent of ECS Exec writes; volumes, because the root filesystem is read-only. */
const AGENT_VOLUMES: readonly [string, string][] = [
  ['managed-agents', '/managed-agents'],
  ['ssm-lib', '/var/lib/amazon/ssm'],
  ['ssm-log', '/var/log/amazon/ssm'],
];

/** The task definition, role and security group of an access level. */
export class Level extends Construct {
  public readonly family: string;
  public readonly taskRole: iam.Role;
  public readonly securityGroup: ec2.SecurityGroup;
  /** `target` of the environment. */
  public readonly targetsJson: { readonly [name: string]: object };

  constructor(scope: Construct, id: string, props: LevelProps) {
    super(scope, id);
    const { environment, level, vpc } = props;
    const stack = Stack.of(this);
    this.family = `bastion-${environment}-${level}`;
    this.taskRole = new iam.Role(this, 'TaskRole', {
      description: `What a bastion task of ${environment} may do at access level ${level}`,
      assumedBy: tasksOf(stack),
    });
    this.taskRole.addToPolicy(
      new iam.PolicyStatement({
        sid: 'SessionManagerAgent',
        actions: [
          'ssmmessages:CreateControlChannel',
          'ssmmessages:CreateDataChannel',
          'ssmmessages:OpenControlChannel',
          'ssmmessages:OpenDataChannel',
        ],
        resources: ['*'],
      }),
    );
    Validations.of(this.taskRole).acknowledge({
      id: 'AwsSolutions-IAM5[Resource::*]',
      reason: 'The four ssmmessages actions of the agent have no resource to name',
    });
    this.securityGroup = new ec2.SecurityGroup(this, 'SecurityGroup', {
      vpc,
      description: `bastion ${environment}, access level ${level}`,
      allowAllOutbound: false,
    });
    this.securityGroup.addEgressRule(ec2.Peer.anyIpv4(), ec2.Port.tcp(443), 'AWS services');
    this.targetsJson = Object.fromEntries(
      props.targets.map((target) => [target.name, this.bindTarget(target, props.problems)]),
    );
    this.makeTaskDefinition(props, {
      env: environment,
      access: level,
      region: stack.region,
      idle_stop: duration(props.idleStop),
      max_age: duration(props.maxAge),
      extra_ca: props.extraCa,
      local_password: props.localPassword,
      audit: props.audit.level,
      redact: props.audit.redact,
      log_hash_key: props.audit.logHashKey,
      metrics: props.metrics ? 'emf' : undefined,
      target: this.targetsJson,
    });
  }

  /** Opens the way to the target, lets the role log in there, and gives the target as the relay reads it. */
  private bindTarget(target: BastionTarget, problems: Problems): object {
    const { credential, database, localInfile, localPort, readOnly } = target.options;
    const config = target.bind(problems);
    if (config === undefined) {
      return {};
    }
    const { engine, host, port } = config;
    if (localInfile === true && engine.name !== BastionEngine.MYSQL.name) {
      problems.add(target.thing, `engine "${engine.name}" has no LOAD DATA LOCAL`, 'leave localInfile out');
    }
    const login = credential.bind(this, this.taskRole, { thing: target.thing, ...config }, problems);
    this.securityGroup.connections.allowTo(config.connections, ec2.Port.tcp(port), `bastion to ${target.name}`);
    if (login?.reach !== undefined) {
      const { peer, port, what } = login.reach;
      this.securityGroup.addEgressRule(peer ?? ec2.Peer.anyIpv4(), ec2.Port.tcp(port), `${what} for ${target.name}`);
    }
    return {
      engine: engine.name,
      host,
      port,
      database,
      local_infile: localInfile,
      local_port: localPort,
      read_only: readOnly,
      credential: login?.json,
    };
  }

  private makeTaskDefinition(props: LevelProps, config: object): void {
    const definition = new ecs.FargateTaskDefinition(this, 'TaskDefinition', {
      family: this.family,
      cpu: props.size.cpu,
      memoryLimitMiB: props.size.memoryLimitMiB,
      executionRole: props.executionRole,
      taskRole: this.taskRole,
      runtimePlatform: {
        cpuArchitecture: props.architecture,
        operatingSystemFamily: ecs.OperatingSystemFamily.LINUX,
      },
      volumes: AGENT_VOLUMES.map(([name]) => ({ name })),
    });
    const linuxParameters = new ecs.LinuxParameters(this, 'LinuxParameters', { initProcessEnabled: true });
    linuxParameters.dropCapabilities(ecs.Capability.ALL);
    const container = definition.addContainer('bastion', {
      image: props.image,
      environment: { BASTION_CONFIG: Stack.of(this).toJsonString(config) },
      healthCheck: {
        command: ['CMD', '/bastion', 'relay', '--health'],
        interval: Duration.seconds(10),
        timeout: Duration.seconds(5),
        retries: 3,
        startPeriod: Duration.seconds(10),
      },
      linuxParameters,
      // With the other mode, ECS's default, records are dropped in silence; the relay bounds what a slow log can hold up.
      logging: ecs.LogDrivers.awsLogs({
        logGroup: props.logGroup,
        streamPrefix: props.level,
        mode: ecs.AwsLogDriverMode.BLOCKING,
      }),
      readonlyRootFilesystem: true,
      stopTimeout: Duration.seconds(30),
      user: '65532:65532',
    });
    for (const [sourceVolume, containerPath] of AGENT_VOLUMES) {
      container.addMountPoints({ sourceVolume, containerPath, readOnly: false });
    }
    Validations.of(definition).acknowledge({
      id: 'AwsSolutions-ECS2',
      reason: 'BASTION_CONFIG names databases and users and holds no secret; docs/configuration.md has all of it',
    });
  }
}

/** ECS tasks of this account and region, and no other account's through a confused service. */
export function tasksOf(stack: Stack): iam.ServicePrincipal {
  const tasks = stack.formatArn({ service: 'ecs', resource: '*', arnFormat: ArnFormat.NO_RESOURCE_NAME });
  return new iam.ServicePrincipal('ecs-tasks.amazonaws.com', {
    conditions: { StringEquals: { 'aws:SourceAccount': stack.account }, ArnLike: { 'aws:SourceArn': tasks } },
  });
}

/** As the launcher and the relay read it: `30m`, `8h`. */
export function duration(duration: Duration): string {
  const seconds = duration.toSeconds();
  for (const [unit, size] of [
    ['h', 3600],
    ['m', 60],
  ] as const) {
    if (seconds % size === 0) {
      return `${seconds / size}${unit}`;
    }
  }
  return `${seconds}s`;
}
