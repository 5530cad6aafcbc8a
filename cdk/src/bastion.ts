import * as path from 'node:path';
import { Duration, RemovalPolicy, Stack, Token, Validations } from 'aws-cdk-lib';
import type { IAlarmAction } from 'aws-cdk-lib/aws-cloudwatch';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import { Platform } from 'aws-cdk-lib/aws-ecr-assets';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as iam from 'aws-cdk-lib/aws-iam';
import type { IKey } from 'aws-cdk-lib/aws-kms';
import { LogGroup, RetentionDays } from 'aws-cdk-lib/aws-logs';
import * as ssm from 'aws-cdk-lib/aws-ssm';
import { Construct, type IConstruct } from 'constructs';
import type { BastionAccessLevel } from './access';
import { BastionAudit } from './audit';
import { Endpoints } from './endpoints';
import { Guard } from './guard';
import { duration, Level, tasksOf } from './level';
import { Monitoring } from './monitoring';
import { acknowledgeWildcards } from './nag';
import { breakGlassStatements, developerStatements, type PolicyScope } from './policies';
import { isName, NAME_FIX, nameOf, Problems } from './problems';
import { BastionSize } from './size';
import type { BastionTarget } from './target';

/** The port of the relay's HTTP side, which sessions are opened to (`PORT` in `src/api/mod.rs`). */
const RELAY_PORT = 7070;
/** More sessions to one task only share its CPU (`LANES_MAX` of the launcher). */
const LANES_MAX = 32;

/** Why the policies have wildcards. */
const WILDCARDS =
  'Revisions, task ids and session ids are not known before; each such statement is held to the family, the cluster, the caller or a tag that only the caller can have';

/** What makes a bastion. */
export interface BastionProps {
  /** The VPC that the tasks run in: it must reach the databases. */
  readonly vpc: ec2.IVpc;
  /** What the bastion reaches, and as whom. */
  readonly targets: BastionTarget[];
  /**
   * The access levels, the default one first. Targets name the one that they belong to.
   *
   * @default - one level, `read`
   */
  readonly accessLevels?: { readonly [name: string]: BastionAccessLevel };
  /**
   * Actions of the alarms, for example a topic.
   *
   * @default - none: the alarms are shown in CloudWatch only
   */
  readonly alarmActions?: IAlarmAction[];
  /**
   * The processor of the task. The image must be built for it.
   *
   * @default ecs.CpuArchitecture.ARM64
   */
  readonly architecture?: ecs.CpuArchitecture;
  /**
   * What the audit log records.
   *
   * @default BastionAudit.CONNECTIONS
   */
  readonly audit?: BastionAudit;
  /**
   * The cluster that the tasks run in.
   *
   * @default - a new one, `bastion-ENVIRONMENT`
   */
  readonly cluster?: ecs.ICluster;
  /**
   * Whether to make a dashboard. CloudWatch bills dashboards after the third.
   *
   * @default true
   */
  readonly dashboard?: boolean;
  /**
   * A customer managed key for the log groups.
   *
   * @default - CloudWatch's own encryption
   */
  readonly encryptionKey?: IKey;
  /**
   * Certificate authorities that the relay trusts besides its own, as PEM text: for databases in China and in the European
   * Sovereign Cloud, whose authorities do not come with it, or for a proxy that inspects TLS.
   *
   * @default - those of Amazon RDS (commercial and GovCloud regions) and Amazon Trust Services
   */
  readonly extraCa?: string;
  /**
   * What developers type: `bastion up ENVIRONMENT`.
   *
   * @default - the id of this construct in lower case
   */
  readonly environmentName?: string;
  /**
   * The relay ends itself when no database connection was open for so long.
   *
   * @default Duration.minutes(30)
   */
  readonly idleStop?: Duration;
  /**
   * The relay's image.
   *
   * @default - built from the Dockerfile of this repository when the stack is deployed
   */
  readonly image?: ecs.ContainerImage;
  /**
   * Whether to make the VPC endpoints that a task needs in subnets without a NAT gateway. They are billed by the hour.
   *
   * @default false
   */
  readonly interfaceEndpoints?: boolean;
  /**
   * How many sessions `bastion up` opens in parallel, 1 to 32.
   *
   * @default - the launcher's
   */
  readonly lanes?: number;
  /**
   * Whether clients must show a password that each task makes and `bastion up` prints, so that other programs on the laptop
   * cannot use the local ports.
   *
   * @default false
   */
  readonly localPassword?: boolean;
  /**
   * How long logs are kept.
   *
   * @default RetentionDays.ONE_YEAR
   */
  readonly logRetention?: RetentionDays;
  /**
   * The oldest that a task gets. The guard stops what is older.
   *
   * @default Duration.hours(8)
   */
  readonly maxAge?: Duration;
  /**
   * Whether relays count connections, bytes and callers in CloudWatch, which the dashboard then shows. CloudWatch bills five
   * metrics for each target of an access level and two for each level, in the hours in which they are used.
   *
   * @default false
   */
  readonly metrics?: boolean;
  /**
   * How large the task is.
   *
   * @default BastionSize.SMALL
   */
  readonly size?: BastionSize;
  /**
   * Where the tasks run.
   *
   * @default - private subnets with a way out, otherwise isolated ones
   */
  readonly vpcSubnets?: ec2.SubnetSelection;
}

/** Whom `grantConnect` lets do what. */
export interface BastionGrantOptions {
  /**
   * The access levels.
   *
   * @default - all that are not for break-glass
   */
  readonly access?: string[];
}

/**
 * An on-demand bastion for private databases: everything but a running task.
 *
 * Developers who have {@link developerPolicy} run `bastion up ENVIRONMENT`. Each access level has a task definition, a
 * task role and a security group of its own; the role is what separates the levels.
 */
export class Bastion extends Construct implements ec2.IConnectable {
  /** What developers type. */
  public readonly environmentName: string;
  public readonly cluster: ecs.ICluster;
  /** The security groups of all access levels. */
  public readonly connections: ec2.Connections;
  /** What a developer needs and nothing else: the levels that are not for break-glass. For permission sets, by name. */
  public readonly developerPolicy: iam.ManagedPolicy;
  /** Every level, and the end of anybody's task. */
  public readonly breakGlassPolicy: iam.ManagedPolicy;
  public readonly logGroup: LogGroup;
  /** The environment that the launcher reads, `/bastion/ENVIRONMENT`. */
  public readonly parameter: ssm.StringParameter;
  /** The session document: one port of the task, no host. */
  public readonly document: ssm.CfnDocument;
  public readonly monitoring: Monitoring;

  private readonly levels = new Map<string, Level>();
  private readonly levelOptions: { readonly [name: string]: BastionAccessLevel };
  private readonly policyScope: PolicyScope;

  constructor(scope: Construct, id: string, props: BastionProps) {
    super(scope, id);
    const problems = new Problems();
    this.environmentName = props.environmentName ?? nameOf(id);
    this.levelOptions = props.accessLevels ?? { read: {} };
    this.check(props, problems);
    const subnets = chooseSubnets(props, problems);
    problems.finish(this);

    const { encryptionKey, vpc } = props;
    const maxAge = props.maxAge ?? Duration.hours(8);
    const logRetention = props.logRetention ?? RetentionDays.ONE_YEAR;
    const name = `bastion-${this.environmentName}`;
    this.cluster = props.cluster ?? this.makeCluster(vpc, name);
    this.logGroup = new LogGroup(this, 'Logs', {
      logGroupName: `/bastion/${this.environmentName}`,
      retention: logRetention,
      encryptionKey,
      // Who was connected to what outlives the bastion.
      removalPolicy: RemovalPolicy.RETAIN,
    });
    const executionRole = this.makeExecutionRole();
    const architecture = props.architecture ?? ecs.CpuArchitecture.ARM64;
    const image = props.image ?? buildImage(architecture);
    for (const level of Object.keys(this.levelOptions)) {
      const made = new Level(this, `Access-${level}`, {
        architecture,
        audit: props.audit ?? BastionAudit.CONNECTIONS,
        environment: this.environmentName,
        executionRole,
        extraCa: props.extraCa,
        idleStop: props.idleStop ?? Duration.minutes(30),
        image,
        level,
        localPassword: props.localPassword,
        logGroup: this.logGroup,
        maxAge,
        metrics: props.metrics ?? false,
        problems,
        size: props.size ?? BastionSize.SMALL,
        targets: props.targets.filter((target) => this.levelOf(target) === level),
        vpc,
      });
      this.levels.set(level, made);
    }
    problems.finish(this);
    this.connections = new ec2.Connections({
      securityGroups: [...this.levels.values()].map((level) => level.securityGroup),
    });
    if (props.interfaceEndpoints) {
      new Endpoints(this, 'Endpoints', { vpc, subnets, from: this.connections });
    }

    this.document = this.makeDocument(name);
    const parameterName = `/bastion/${this.environmentName}`;
    this.parameter = new ssm.StringParameter(this, 'Parameter', {
      parameterName,
      description: `What bastion up ${this.environmentName} reads`,
      stringValue: this.environmentJson(props, subnets, maxAge),
      // Many targets do not fit into 4 kB; only then is it an advanced one.
      tier: ssm.ParameterTier.INTELLIGENT_TIERING,
    });

    this.policyScope = {
      stack: Stack.of(this),
      environment: this.environmentName,
      clusterArn: this.cluster.clusterArn,
      clusterName: this.cluster.clusterName,
      documentName: name,
      parameterName,
      executionRoleArn: executionRole.roleArn,
      levels: new Map(
        [...this.levels].map(([level, made]) => [level, { family: made.family, taskRoleArn: made.taskRole.roleArn }]),
      ),
    };
    this.developerPolicy = this.makePolicy(
      'Developer',
      `${name}-developer`,
      `What bastion up ${this.environmentName} needs, on one's own tasks`,
      developerStatements(this.policyScope, this.everydayLevels()),
    );
    this.breakGlassPolicy = this.makePolicy(
      'BreakGlass',
      `${name}-break-glass`,
      `Every access level of ${this.environmentName}, and the end of anybody's task`,
      breakGlassStatements(this.policyScope),
    );

    const guard = new Guard(this, 'Guard', {
      environment: this.environmentName,
      cluster: this.cluster,
      families: [...this.levels.values()].map((level) => level.family),
      maxAge,
      logRetention,
      encryptionKey,
    });
    this.monitoring = new Monitoring(this, 'Monitoring', {
      environment: this.environmentName,
      logGroup: this.logGroup,
      guard,
      targets: props.metrics
        ? [...this.levels].map(([level, { targetsJson }]) => ({ access: level, names: Object.keys(targetsJson) }))
        : [],
      dashboard: props.dashboard ?? true,
      alarmActions: props.alarmActions ?? [],
    });
  }

  /** Lets a role or user run and enter bastions of their own. Prefer {@link developerPolicy} for permission sets. */
  public grantConnect(grantee: iam.IGrantable, options: BastionGrantOptions = {}): iam.Grant {
    const levels = options.access ?? this.everydayLevels();
    const problems = new Problems();
    for (const level of levels) {
      this.checkLevel('grantConnect', level, problems);
    }
    problems.finish(this);
    const statements = developerStatements(this.policyScope, levels);
    if (isConstruct(grantee)) {
      acknowledgeWildcards(grantee, statements, WILDCARDS);
    }
    return statements
      .map((statement) => {
        const { actions, resources: resourceArns, conditions } = statement;
        return iam.Grant.addToPrincipal({ grantee, actions, resourceArns, conditions });
      })
      .reduce((all, one) => all.combine(one));
  }

  /** The task role of an access level: whoever may run its task may do what this role may. */
  public taskRole(level: string): iam.IRole {
    const problems = new Problems();
    this.checkLevel('taskRole', level, problems);
    problems.finish(this);
    return (this.levels.get(level) as Level).taskRole;
  }

  private levelOf(target: BastionTarget): string {
    return target.options.access ?? Object.keys(this.levelOptions)[0] ?? '';
  }

  private everydayLevels(): string[] {
    return Object.keys(this.levelOptions).filter((level) => !this.levelOptions[level]?.breakGlass);
  }

  private check(props: BastionProps, problems: Problems): void {
    const levels = Object.keys(this.levelOptions);
    if (!isName(this.environmentName)) {
      problems.add('environmentName', `"${this.environmentName}" is not a name`, NAME_FIX);
    }
    if (levels.length === 0) {
      problems.add('accessLevels', 'there is none', 'leave it out for one level "read", or add one');
    } else if (this.everydayLevels().length === 0) {
      problems.add('accessLevels', 'all are for break-glass', 'leave breakGlass out of at least one');
    }
    for (const level of levels.filter((level) => !isName(level))) {
      problems.add('accessLevels', `"${level}" is not a name`, NAME_FIX);
    }
    if (props.targets.length === 0) {
      problems.add('targets', 'there is none', 'add a BastionTarget');
    }
    if (props.extraCa !== undefined && !props.extraCa.includes('-----BEGIN CERTIFICATE-----')) {
      problems.add('extraCa', 'holds no certificate', 'give the text of a PEM file: fs.readFileSync(FILE, "utf8")');
    }
    if (props.lanes !== undefined && !(Number.isInteger(props.lanes) && props.lanes >= 1 && props.lanes <= LANES_MAX)) {
      problems.add('lanes', `${props.lanes} is not a number of sessions`, `use 1 to ${LANES_MAX}`);
    }
    for (const [name, duration] of [
      ['idleStop', props.idleStop],
      ['maxAge', props.maxAge],
    ] as const) {
      if (duration !== undefined && duration.toSeconds({ integral: false }) < 60) {
        problems.add(name, `${duration.toHumanString()} is less than a minute`, 'use at least Duration.minutes(1)');
      }
    }
    const seen = new Map<string, BastionTarget>();
    for (const target of props.targets) {
      if (!isName(target.name)) {
        problems.add(target.thing, 'that is not a name', NAME_FIX);
      }
      const level = this.levelOf(target);
      if (target.options.access !== undefined) {
        this.checkLevel(target.thing, level, problems);
      }
      const twin = seen.get(`${level}/${target.name}`);
      if (twin !== undefined) {
        const [one, two] = [twin, target].map((target) => target.options.credential.title);
        const fix = 'keep one, give them different names, or put them into different access levels';
        problems.add(target.thing, `has two credentials in access level "${level}", ${one} and ${two}`, fix);
      }
      seen.set(`${level}/${target.name}`, target);
    }
    for (const level of levels.filter((level) => !props.targets.some((target) => this.levelOf(target) === level))) {
      problems.add(`access level "${level}"`, 'no target belongs to it', `remove it or set access: '${level}' on one`);
    }
  }

  private checkLevel(thing: string, level: string, problems: Problems): void {
    const known = Object.keys(this.levelOptions);
    if (!known.includes(level)) {
      const list = known.map((name) => `"${name}"`).join(', ');
      problems.add(thing, `access level "${level}" is unknown`, `use one of ${list}, or add it to accessLevels`);
    }
  }

  private makeCluster(vpc: ec2.IVpc, clusterName: string): ecs.Cluster {
    const cluster = new ecs.Cluster(this, 'Cluster', { vpc, clusterName });
    Validations.of(cluster).acknowledge({
      id: 'AwsSolutions-ECS4',
      reason: 'Container Insights bills every task; the relay writes its own metrics and one line for each connection',
    });
    return cluster;
  }

  private makeExecutionRole(): iam.Role {
    const role = new iam.Role(this, 'ExecutionRole', {
      description: `Pulls the image and writes the logs of bastion ${this.environmentName}`,
      assumedBy: tasksOf(Stack.of(this)),
    });
    Validations.of(role).acknowledge({
      id: 'AwsSolutions-IAM5[Resource::*]',
      reason: 'ecr:GetAuthorizationToken has no resource; pulling is held to the repository of the image',
    });
    return role;
  }

  private makeDocument(name: string): ssm.CfnDocument {
    return new ssm.CfnDocument(this, 'Document', {
      name,
      documentType: 'Session',
      documentFormat: 'JSON',
      updateMethod: 'NewVersion',
      content: {
        schemaVersion: '1.0',
        description: `The relay's port in a task of bastion ${this.environmentName}, and nothing else`,
        sessionType: 'Port',
        parameters: {
          localPortNumber: {
            type: 'String',
            description: 'Where the client listens; Session Manager only echoes it',
            default: '0',
            allowedPattern: '^[0-9]{1,5}$',
          },
        },
        properties: {
          portNumber: String(RELAY_PORT),
          type: 'LocalPortForwarding',
          localPortNumber: '{{ localPortNumber }}',
        },
      },
    });
  }

  private makePolicy(
    id: string,
    managedPolicyName: string,
    description: string,
    statements: iam.PolicyStatement[],
  ): iam.ManagedPolicy {
    const policy = new iam.ManagedPolicy(this, id, { managedPolicyName, description, statements });
    acknowledgeWildcards(policy, statements, WILDCARDS);
    return policy;
  }

  /** The schema of docs/configuration.md, as the launcher reads it. */
  private environmentJson(props: BastionProps, subnets: ec2.ISubnet[], maxAge: Duration): string {
    const stack = Stack.of(this);
    const access = Object.fromEntries(
      [...this.levels].map(([level, made]) => [
        level,
        {
          task_definition: made.family,
          subnets: subnets.map((subnet) => subnet.subnetId),
          security_groups: [made.securityGroup.securityGroupId],
          reason_required: this.levelOptions[level]?.reasonRequired,
          target: made.targetsJson,
        },
      ]),
    );
    return stack.toJsonString({
      region: stack.region,
      cluster: this.cluster.clusterName,
      document: `bastion-${this.environmentName}`,
      idle_stop: duration(props.idleStop ?? Duration.minutes(30)),
      max_age: duration(maxAge),
      lanes: props.lanes,
      access,
    });
  }
}

function chooseSubnets(props: BastionProps, problems: Problems): ec2.ISubnet[] {
  const { vpc, vpcSubnets } = props;
  if (vpcSubnets === undefined && vpc.privateSubnets.length + vpc.isolatedSubnets.length === 0) {
    const what = `VPC ${Token.isUnresolved(vpc.vpcId) ? vpc.node.path : vpc.vpcId} has no private subnets`;
    problems.add('vpc', what, 'add PRIVATE_WITH_EGRESS or PRIVATE_ISOLATED subnets, or choose others with vpcSubnets');
    return [];
  }
  const subnetType =
    vpc.privateSubnets.length > 0 ? ec2.SubnetType.PRIVATE_WITH_EGRESS : ec2.SubnetType.PRIVATE_ISOLATED;
  const { subnets } = vpc.selectSubnets(vpcSubnets ?? { subnetType });
  if (props.interfaceEndpoints && !subnets.every(hasRouteTable)) {
    const what = 'the route tables of the imported subnets are unknown, so S3 cannot be reached from them';
    problems.add(
      'interfaceEndpoints',
      what,
      'import the VPC with privateSubnetRouteTableIds or isolatedSubnetRouteTableIds',
    );
  }
  return subnets;
}

/** An imported subnet may not have one, and says so by throwing or with a warning. */
function hasRouteTable(subnet: ec2.ISubnet): boolean {
  try {
    return Boolean(subnet.routeTable.routeTableId);
  } catch {
    return false;
  }
}

function isConstruct(grantee: iam.IGrantable): grantee is iam.IGrantable & IConstruct {
  return Construct.isConstruct(grantee);
}

function buildImage(architecture: ecs.CpuArchitecture): ecs.ContainerImage {
  const platform = architecture === ecs.CpuArchitecture.X86_64 ? Platform.LINUX_AMD64 : Platform.LINUX_ARM64;
  return ecs.ContainerImage.fromAsset(path.join(__dirname, '..', '..'), { platform });
}
