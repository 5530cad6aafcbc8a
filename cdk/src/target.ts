import { Stack, Token } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import type * as rds from 'aws-cdk-lib/aws-rds';
import { CfnDBCluster, CfnDBInstance } from 'aws-cdk-lib/aws-rds';
import type { IConstruct } from 'constructs';
import type { BastionCredential } from './credential';
import { BastionEngine } from './engine';
import { nameOf, type Problems } from './problems';

/** What every kind of target may say. */
export interface BastionTargetOptions {
  /** What the relay logs in with. */
  readonly credential: BastionCredential;
  /**
   * The access level that reaches the target so.
   *
   * @default - the bastion's first access level
   */
  readonly access?: string;
  /**
   * The database for clients that name none.
   *
   * @default - the client's
   */
  readonly database?: string;
  /**
   * What it speaks.
   *
   * @default - the engine of the database construct
   */
  readonly engine?: BastionEngine;
  /**
   * Whether clients may send files of their own computer to the database with LOAD DATA LOCAL (MySQL). The relay passes
   * only requests for the file that a client's own statement names, and records them.
   *
   * @default false
   */
  readonly localInfile?: boolean;
  /**
   * The port on the laptop.
   *
   * @default - 15432, 13306 or the target's port + 10000, or the next free one
   */
  readonly localPort?: number;
  /**
   * Whether sessions of PostgreSQL and MySQL start read-only. Clients can switch it off: the database user's grants are the boundary.
   *
   * @default - true at an access level called `read`
   */
  readonly readOnly?: boolean;
}

/** A database construct as a target. */
export interface BastionInstanceTargetOptions extends BastionTargetOptions {
  /**
   * What `bastion up` calls it.
   *
   * @default - the id of the database construct in lower case
   */
  readonly name?: string;
  /**
   * `DbClusterResourceId` or `DbiResourceId`. Needed for `BastionCredential.rdsIam` and a database that is imported
   * without it.
   *
   * @default - that of the database construct
   */
  readonly resourceId?: string;
}

/** An Aurora cluster as a target. */
export interface BastionClusterTargetOptions extends BastionInstanceTargetOptions {
  /**
   * Whether to use the reader endpoint.
   *
   * @default false
   */
  readonly reader?: boolean;
}

/** Any address as a target. */
export interface BastionEndpointTargetOptions extends BastionTargetOptions {
  /** What `bastion up` calls it. */
  readonly name: string;
  /**
   * The port.
   *
   * @default - the engine's usual one
   */
  readonly port?: number;
  /** Where the endpoint is: the task may reach this and nothing around it. A security group gets an ingress rule. */
  readonly peer: ec2.IPeer;
  /**
   * `DbClusterResourceId`, `DbiResourceId`, or for RDS Proxy the id in its ARN (`prx-…`); needed for
   * `BastionCredential.rdsIam`.
   *
   * @default - none
   */
  readonly resourceId?: string;
}

/** A target as the bastion needs it. */
export interface BastionTargetConfig {
  readonly engine: BastionEngine;
  readonly host: string;
  readonly port: number;
  readonly resourceId?: string;
  /** Whether it takes IAM tokens; undefined if that cannot be known. */
  readonly iamAuthentication?: boolean;
  /** Where the task may connect to. */
  readonly connections: ec2.Connections;
}

/** A database that is reached through the bastion. */
export abstract class BastionTarget {
  /** An Aurora or Multi-AZ cluster. */
  public static cluster(db: rds.IDatabaseCluster, options: BastionClusterTargetOptions): BastionTarget {
    return new ClusterTarget(db, options);
  }

  /** An RDS instance. */
  public static instance(db: rds.IDatabaseInstance, options: BastionInstanceTargetOptions): BastionTarget {
    return new InstanceTarget(db, options);
  }

  /** Anything with a DNS name and a port. */
  public static endpoint(host: string, options: BastionEndpointTargetOptions): BastionTarget {
    return new EndpointTarget(host, options);
  }

  /** What `bastion up` calls it. */
  public abstract readonly name: string;

  protected constructor(
    /** What the target says of itself. */
    public readonly options: BastionTargetOptions,
  ) {}

  /** Resolves the target; undefined if `problems` say why not. */
  public abstract bind(problems: Problems): BastionTargetConfig | undefined;

  /** How messages name it. */
  public get thing(): string {
    return `target "${this.name}"`;
  }

  protected engineOf(engine: rds.IEngine | undefined, problems: Problems): BastionEngine | undefined {
    const known = { MYSQL: BastionEngine.MYSQL, POSTGRESQL: BastionEngine.POSTGRES }[engine?.engineFamily ?? ''];
    const chosen = this.options.engine ?? known;
    if (chosen === undefined) {
      const what = engine ? `the relay cannot log in to engine "${engine.engineType}"` : 'the engine is unknown';
      problems.add(this.thing, what, 'set engine to BastionEngine.POSTGRES, .MYSQL or .TCP');
    }
    return chosen;
  }
}

class ClusterTarget extends BastionTarget {
  public readonly name: string;

  constructor(
    private readonly db: rds.IDatabaseCluster,
    private readonly own: BastionClusterTargetOptions,
  ) {
    super(own);
    this.name = own.name ?? nameOf(db.node.id);
  }

  public bind(problems: Problems): BastionTargetConfig | undefined {
    const engine = this.engineOf(this.db.engine, problems);
    const endpoint = unless(() => (this.own.reader ? this.db.clusterReadEndpoint : this.db.clusterEndpoint));
    if (endpoint === undefined) {
      const name = this.own.reader ? 'readerEndpointAddress' : 'clusterEndpointAddress';
      problems.add(this.thing, 'the imported cluster has no endpoint', `import it with ${name} and port`);
    }
    checkReachable(this.db, this.thing, problems);
    return engine && endpoint
      ? {
          engine,
          host: endpoint.hostname,
          port: endpoint.port,
          resourceId: this.own.resourceId ?? unless(() => this.db.clusterResourceIdentifier),
          iamAuthentication: iamAuthentication(this.db),
          connections: connectionsTo(this.db, endpoint.port),
        }
      : undefined;
  }
}

class InstanceTarget extends BastionTarget {
  public readonly name: string;

  constructor(
    private readonly db: rds.IDatabaseInstance,
    private readonly own: BastionInstanceTargetOptions,
  ) {
    super(own);
    this.name = own.name ?? nameOf(db.node.id);
  }

  public bind(problems: Problems): BastionTargetConfig | undefined {
    const engine = this.engineOf(this.db.engine, problems);
    checkReachable(this.db, this.thing, problems);
    const { hostname, port } = this.db.instanceEndpoint;
    return engine
      ? {
          engine,
          host: hostname,
          port,
          resourceId: this.own.resourceId ?? this.db.instanceResourceId,
          iamAuthentication: iamAuthentication(this.db),
          connections: connectionsTo(this.db, port),
        }
      : undefined;
  }
}

/** A DNS name: letters, digits, hyphens and dots (RFC 1123). */
const HOST = /^(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*$/;

class EndpointTarget extends BastionTarget {
  public readonly name: string;

  constructor(
    private readonly host: string,
    private readonly own: BastionEndpointTargetOptions,
  ) {
    super(own);
    this.name = own.name;
  }

  public bind(problems: Problems): BastionTargetConfig | undefined {
    const engine = this.engineOf(undefined, problems);
    if (!Token.isUnresolved(this.host) && !HOST.test(this.host)) {
      problems.add(this.thing, `"${this.host}" is not a host name`, "write the endpoint's DNS name, no scheme or port");
    }
    const port = this.own.port ?? engine?.defaultPort;
    if (engine !== undefined && port === undefined) {
      problems.add(this.thing, 'the port is missing', 'set port: engine "tcp" has no usual one');
    }
    if (port !== undefined && !Token.isUnresolved(port) && !(Number.isInteger(port) && port >= 1 && port <= 65535)) {
      problems.add(this.thing, `port ${port} is not a port`, 'use 1 to 65535');
    }
    return engine && port
      ? {
          engine,
          host: this.host,
          port,
          resourceId: this.own.resourceId,
          connections: new ec2.Connections({
            defaultPort: ec2.Port.tcp(port),
            ...(isSecurityGroup(this.own.peer) ? { securityGroups: [this.own.peer] } : { peer: this.own.peer }),
          }),
        }
      : undefined;
  }
}

function isSecurityGroup(peer: ec2.IPeer): peer is ec2.ISecurityGroup {
  return 'securityGroupId' in peer;
}

/** The value, or undefined where an imported construct does not have it and says so by throwing. */
function unless<T>(get: () => T): T | undefined {
  try {
    return get();
  } catch {
    return undefined;
  }
}

function connectionsTo(db: ec2.IConnectable, port: number): ec2.Connections {
  return new ec2.Connections({
    defaultPort: ec2.Port.tcp(port),
    securityGroups: db.connections.securityGroups,
  });
}

/** Without a security group there is nothing that an egress rule could name. */
function checkReachable(db: ec2.IConnectable, thing: string, problems: Problems): void {
  if (db.connections.securityGroups.length === 0) {
    problems.add(
      thing,
      'the imported database has no security group, so the task could not reach it',
      'import it with securityGroups, or use BastionTarget.endpoint() with a peer',
    );
  }
}

/** Whether the database takes IAM tokens; undefined for imported ones. */
function iamAuthentication(db: IConstruct): boolean | undefined {
  const resource = db.node.defaultChild;
  if (!(resource instanceof CfnDBCluster || resource instanceof CfnDBInstance)) {
    return undefined;
  }
  const value = Stack.of(db).resolve(resource.enableIamDatabaseAuthentication);
  // A parameter or condition of the template decides when it is deployed.
  return typeof value === 'object' ? undefined : value === true;
}
