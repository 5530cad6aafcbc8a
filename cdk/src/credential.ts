import { ArnFormat, Stack, Token } from 'aws-cdk-lib';
import type { IPeer } from 'aws-cdk-lib/aws-ec2';
import type { IRole } from 'aws-cdk-lib/aws-iam';
import { PolicyStatement } from 'aws-cdk-lib/aws-iam';
import type { ISecret } from 'aws-cdk-lib/aws-secretsmanager';
import type { Construct } from 'constructs';
import type { BastionEngine } from './engine';
import type { Problems } from './problems';

/** What a credential is told about the target that it is for. */
export interface CredentialContext {
  /** The target as messages name it: `target "orders"`. */
  readonly thing: string;
  readonly engine: BastionEngine;
  /** The name of its endpoint. */
  readonly host: string;
  /** `cluster-…`, `db-…` or `prx-…`, where there is one. */
  readonly resourceId?: string;
  /** Whether the database takes IAM tokens; undefined if that cannot be known here. */
  readonly iamAuthentication?: boolean;
}

/** What a credential adds to the environment and to the task. */
export interface CredentialConfig {
  /** The value of `credential` in the environment. */
  // biome-ignore lint/suspicious/noExplicitAny: JSON of the relay's schema
  readonly json: any;
  /** What else than the database the task must reach. */
  readonly reach?: { readonly peer?: IPeer; readonly port: number; readonly what: string };
}

/** How to log in with an IAM token. */
export interface RdsIamCredentialOptions {
  /**
   * The region of the database, if its endpoint's name does not say it and it is not the stack's.
   *
   * @default - the region in the endpoint's name, otherwise the stack's
   */
  readonly region?: string;
}

/** How to log in at a Vault. */
export interface VaultCredentialOptions {
  /** Its address with scheme and port, for example `https://vault.internal:8200`. */
  readonly address: string;
  /**
   * The role of Vault's AWS authentication that the login is for.
   *
   * @default - with `login: 'caller'` the one that is named as the person's role of IAM; otherwise it must be given
   */
  readonly role?: string;
  /** The path that makes database users, for example `production-db/creds/read`. */
  readonly creds: string;
  /**
   * The path at which AWS authentication is mounted.
   *
   * @default 'aws'
   */
  readonly mount?: string;
  /**
   * Who logs in: the task role, or each caller as themselves, so that Vault's policy for the person decides. The caller
   * signs on the laptop, the relay hands it to Vault.
   *
   * @default 'task'
   */
  readonly login?: 'task' | 'caller';
  /**
   * The value of `iam_server_id_header_value` of that mount: logins made for this Vault are good for no other. Needed for
   * `login: 'caller'`.
   *
   * @default - none
   */
  readonly serverId?: string;
  /**
   * The region whose STS that mount asks (`sts_region`).
   *
   * @default - the global endpoint
   */
  readonly stsRegion?: string;
  /**
   * Vault's namespace.
   *
   * @default - none
   */
  readonly namespace?: string;
  /**
   * Where the Vault is, for the egress rule of the task.
   *
   * @default - any IPv4 address, on the port of `address`
   */
  readonly peer?: IPeer;
}

/** What the relay logs in with at a target. */
export abstract class BastionCredential {
  /** An RDS IAM token of the task role, for this database user. The user needs `GRANT rds_iam` or the AWS plugin. */
  public static rdsIam(user: string, options: RdsIamCredentialOptions = {}): BastionCredential {
    return new RdsIamCredential(user, options);
  }

  /** A user that a Vault makes for the connection. */
  public static vault(options: VaultCredentialOptions): BastionCredential {
    return new VaultCredential(options);
  }

  /** User and password of a secret in Secrets Manager, read when they are needed; rotation is followed. */
  public static secret(secret: ISecret): BastionCredential {
    return new SecretCredential(secret);
  }

  /** None: clients log in themselves and the relay relays bytes. */
  public static client(): BastionCredential {
    return new ClientCredential();
  }

  /** How messages name it. */
  public abstract readonly title: string;

  /** Gives the role what this credential needs for the target. */
  public abstract bind(
    scope: Construct,
    role: IRole,
    context: CredentialContext,
    problems: Problems,
  ): CredentialConfig | undefined;
}

/**
 * `cluster-` of Aurora or `db-` of an instance, and upper-case letters and digits; `prx-` of RDS Proxy, and lower-case ones
 * (RDS User Guide, "IAM policy").
 */
const RESOURCE_ID = /^((cluster|db)-[A-Z0-9]+|prx-[a-z0-9]+)$/;
/** `eu-west-1`, `us-gov-east-1`. */
const REGION = /^[a-z]+(-[a-z]+)+-[0-9]+$/;

/** `NAME.ID.REGION.rds.amazonaws.com`, and in some partitions `NAME.ID.rds.REGION.amazonaws.com.cn`. */
const ENDPOINT =
  /\.([^.]+)\.rds(?:-[^.]+)?\.(?:([^.]+)\.)?(?:amazonaws\.(?:com|com\.cn|eu)|(?:c2s\.ic|sc2s\.sgov|csp\.hci\.ic)\.gov|cloud\.adc-e\.uk)\.?$/;

/** The region in the name of an RDS endpoint, as the relay reads it; undefined if there is none. */
function regionOf(host: string): string | undefined {
  const [, before, after] = ENDPOINT.exec(host.toLowerCase()) ?? [];
  return [before, after].find((label) => label !== undefined && REGION.test(label));
}

class RdsIamCredential extends BastionCredential {
  public readonly title: string;

  constructor(
    private readonly user: string,
    private readonly options: RdsIamCredentialOptions,
  ) {
    super();
    this.title = `rdsIam("${user}")`;
  }

  public bind(
    scope: Construct,
    role: IRole,
    context: CredentialContext,
    problems: Problems,
  ): CredentialConfig | undefined {
    const { thing, host, resourceId } = context;
    const { region } = this.options;
    if (!Token.isUnresolved(this.user) && !/^[A-Za-z0-9_.@-]+$/.test(this.user)) {
      problems.add(thing, `database user "${this.user}" is not one user`, 'name exactly one, without wildcards');
      return undefined;
    }
    if (context.engine.name === 'tcp') {
      problems.add(thing, `engine "tcp" cannot log in with ${this.title}`, 'use BastionCredential.client()');
      return undefined;
    }
    if (context.iamAuthentication === false) {
      problems.add(
        thing,
        `IAM authentication is off, so the database refuses ${this.title}`,
        'set iamAuthentication: true on it, or use BastionCredential.secret()',
      );
      return undefined;
    }
    if (resourceId === undefined) {
      problems.add(
        thing,
        `the resource id is unknown, so the task role cannot be held to ${this.title}`,
        'set resourceId to DbClusterResourceId (cluster-…) or DbiResourceId (db-…) of the database, or to the id in the ' +
          'ARN of the proxy (prx-…)',
      );
      return undefined;
    }
    if (!Token.isUnresolved(resourceId) && !RESOURCE_ID.test(resourceId)) {
      problems.add(
        thing,
        `resourceId "${resourceId}" is not a resource id`,
        'use DbClusterResourceId (cluster-…) or DbiResourceId (db-…), or the id in the ARN of a proxy (prx-…), not the ' +
          'identifier, the ARN or *',
      );
      return undefined;
    }
    if (region !== undefined && !Token.isUnresolved(region) && !REGION.test(region)) {
      problems.add(thing, `region "${region}" of ${this.title} is not a region`, 'write it as in "eu-west-1"');
      return undefined;
    }
    const user = Stack.of(scope).formatArn({
      service: 'rds-db',
      region: region ?? (Token.isUnresolved(host) ? undefined : regionOf(host)),
      resource: 'dbuser',
      resourceName: `${resourceId}/${this.user}`,
      arnFormat: ArnFormat.COLON_RESOURCE_NAME,
    });
    role.addToPrincipalPolicy(
      new PolicyStatement({ sid: 'ConnectAsOneUser', actions: ['rds-db:connect'], resources: [user] }),
    );
    // The JSON leaves out what is undefined.
    return { json: { rds_iam: { user: this.user, region } } };
  }
}

class VaultCredential extends BastionCredential {
  public readonly title: string;

  constructor(private readonly options: VaultCredentialOptions) {
    super();
    this.title = `vault("${options.creds}")`;
  }

  public bind(
    _scope: Construct,
    _role: IRole,
    context: CredentialContext,
    problems: Problems,
  ): CredentialConfig | undefined {
    const { address, role, creds, mount, login, serverId, stsRegion, namespace, peer } = this.options;
    const port = portOf(address);
    if (port === undefined) {
      problems.add(context.thing, `Vault address "${address}" is not an https URL`, 'write https://HOST:PORT');
      return undefined;
    }
    if (context.engine.name === 'tcp') {
      problems.add(context.thing, `engine "tcp" cannot log in with ${this.title}`, 'use BastionCredential.client()');
      return undefined;
    }
    if (login === 'caller' && !serverId) {
      problems.add(
        context.thing,
        `${this.title} with login "caller" has no serverId, so what a person signs would be good at every Vault`,
        "set serverId, and iam_server_id_header_value of Vault's AWS authentication to the same",
      );
      return undefined;
    }
    if (login !== 'caller' && !role) {
      problems.add(context.thing, `${this.title} names no role to log in to`, 'set role, or login: "caller"');
      return undefined;
    }
    const vault = { address, auth: 'aws', mount, role, creds, login: login ?? 'task', server_id: serverId };
    return {
      // The JSON leaves out what is undefined.
      json: { vault: { ...vault, sts_region: stsRegion, namespace } },
      reach: port === 443 ? undefined : { peer, port, what: 'Vault' },
    };
  }
}

/** The port of an https URL; undefined if it is none. */
function portOf(address: string): number | undefined {
  if (!URL.canParse(address)) {
    return undefined;
  }
  const url = new URL(address);
  // Vault's own port where none is written, as the relay takes it; `URL` drops a written 443.
  const port = /:443\/?$/.test(address) ? 443 : Number(url.port || 8200);
  return url.protocol === 'https:' ? port : undefined;
}

class SecretCredential extends BastionCredential {
  public readonly title: string;

  constructor(private readonly secret: ISecret) {
    super();
    this.title = `secret(${secret.node.path})`;
  }

  public bind(
    scope: Construct,
    role: IRole,
    context: CredentialContext,
    problems: Problems,
  ): CredentialConfig | undefined {
    if (context.engine.name === 'tcp') {
      problems.add(context.thing, `engine "tcp" cannot log in with ${this.title}`, 'use BastionCredential.client()');
      return undefined;
    }
    this.secret.grantRead(role);
    if (this.secret.encryptionKey !== undefined) {
      // grantRead tells the key; an imported key cannot be told, and its own policy leaves it to IAM.
      role.addToPrincipalPolicy(
        new PolicyStatement({
          actions: ['kms:Decrypt'],
          resources: [this.secret.encryptionKey.keyArn],
          conditions: {
            StringEquals: { 'kms:ViaService': `secretsmanager.${Stack.of(scope).region}.amazonaws.com` },
          },
        }),
      );
    }
    return { json: { secrets_manager: { secret_id: this.secret.secretArn } } };
  }
}

class ClientCredential extends BastionCredential {
  public readonly title = 'client()';

  public bind(): CredentialConfig {
    return { json: 'client' };
  }
}
