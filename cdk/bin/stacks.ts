import { Duration, RemovalPolicy, Stack, type StackProps, Validations } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import type * as ecs from 'aws-cdk-lib/aws-ecs';
import * as rds from 'aws-cdk-lib/aws-rds';
import type { Construct } from 'constructs';
import { Bastion, BastionAudit, BastionCredential, BastionTarget } from '../src';

/** Stands for what you have already: a VPC and databases. In your own app this is your own stack, or imported. */
export class Databases extends Stack {
  public readonly vpc: ec2.Vpc;
  /** Aurora PostgreSQL with IAM authentication. */
  public readonly orders: rds.DatabaseCluster;
  /** MySQL whose users a Vault makes. */
  public readonly shop: rds.DatabaseInstance;
  /** PostgreSQL with user and password in a secret. */
  public readonly ledger: rds.DatabaseInstance;

  constructor(scope: Construct, id: string, props: StackProps) {
    super(scope, id, props);
    this.vpc = new ec2.Vpc(this, 'Vpc', { maxAzs: 2, natGateways: 1 });
    const common = { vpc: this.vpc, storageEncrypted: true, deletionProtection: false };
    const instanceType = ec2.InstanceType.of(ec2.InstanceClass.T4G, ec2.InstanceSize.MICRO);
    this.orders = new rds.DatabaseCluster(this, 'Orders', {
      ...common,
      engine: rds.DatabaseClusterEngine.auroraPostgres({ version: rds.AuroraPostgresEngineVersion.VER_17_4 }),
      writer: rds.ClusterInstance.serverlessV2('Writer'),
      defaultDatabaseName: 'orders',
      iamAuthentication: true,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    this.shop = new rds.DatabaseInstance(this, 'Shop', {
      ...common,
      engine: rds.DatabaseInstanceEngine.mysql({ version: rds.MysqlEngineVersion.VER_8_4_5 }),
      instanceType,
      databaseName: 'shop',
      backupRetention: Duration.days(1),
      removalPolicy: RemovalPolicy.DESTROY,
    });
    this.ledger = new rds.DatabaseInstance(this, 'Ledger', {
      ...common,
      engine: rds.DatabaseInstanceEngine.postgres({ version: rds.PostgresEngineVersion.VER_17_5 }),
      instanceType,
      credentials: rds.Credentials.fromGeneratedSecret('ledger'),
      databaseName: 'ledger',
      backupRetention: Duration.days(1),
      removalPolicy: RemovalPolicy.DESTROY,
    });
    Validations.of(this).acknowledge(
      ...['VPC7', 'RDS3', 'RDS6', 'RDS10', 'RDS11', 'SMG4'].map((rule) => ({
        id: `AwsSolutions-${rule}`,
        reason:
          'Stand-ins that are thrown away; what a database needs in production is not the subject of this example',
      })),
    );
  }
}

/** What an environment of the example needs to know. */
export interface EnvironmentProps extends StackProps {
  readonly databases: Databases;
  /** What developers type. */
  readonly environmentName: string;
  /** The relay's image, made in the stack. @default - built from this repository when the stack is deployed */
  readonly image?: (scope: Construct) => ecs.ContainerImage;
}

/** Reading for everybody, writing with a reason, and a database administrator behind the glass. */
export class Environment extends Stack {
  public readonly bastion: Bastion;

  constructor(scope: Construct, id: string, props: EnvironmentProps) {
    super(scope, id, props);
    const { orders, shop, ledger, vpc } = props.databases;
    const { environmentName } = props;
    const vault = (level: string) =>
      BastionCredential.vault({
        address: 'https://vault.example.com:8200',
        role: `bastion-${environmentName}-${level}`,
        creds: `shop/creds/${level}`,
      });
    this.bastion = new Bastion(this, 'Bastion', {
      vpc,
      environmentName,
      image: props.image?.(this),
      audit: BastionAudit.REDACTED_STATEMENTS,
      metrics: true,
      accessLevels: { read: {}, write: { reasonRequired: true }, admin: { reasonRequired: true, breakGlass: true } },
      targets: [
        BastionTarget.cluster(orders, {
          credential: BastionCredential.rdsIam('db_read'),
          reader: true,
          database: 'orders',
        }),
        BastionTarget.instance(shop, { credential: vault('read'), database: 'shop' }),
        BastionTarget.cluster(orders, {
          access: 'write',
          credential: BastionCredential.rdsIam('db_write'),
          database: 'orders',
        }),
        BastionTarget.instance(shop, { access: 'write', credential: vault('write'), database: 'shop' }),
        BastionTarget.cluster(orders, {
          access: 'admin',
          credential: BastionCredential.rdsIam('db_admin'),
          database: 'orders',
        }),
        BastionTarget.instance(ledger, {
          access: 'admin',
          // biome-ignore lint/style/noNonNullAssertion: its credentials are generated
          credential: BastionCredential.secret(ledger.secret!),
          database: 'ledger',
        }),
      ],
    });
  }
}
