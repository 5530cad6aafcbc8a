import { App, Stack, Validations } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as rds from 'aws-cdk-lib/aws-rds';
import { Secret } from 'aws-cdk-lib/aws-secretsmanager';
import { AwsSolutionsChecks } from 'cdk-nag';
import cdkJson from '../cdk.json';
import { Bastion, BastionCredential, BastionEngine, type BastionProps, BastionTarget } from '../src';
import { ACCOUNT, Deployed, REGION } from './template';

/** The resource ids of the imported databases. */
export const ORDERS_ID = 'cluster-ABCDEFGHIJKLMNOPQRSTUVWXYZ';
export const SHOP_ID = 'db-ZYXWVUTSRQPONMLKJIHGFEDCBA';

/** A stack in which cdk-nag fails every synthesis that has an unexplained finding. */
export class World {
  public readonly app = new App({ context: cdkJson.context });
  public readonly stack = new Stack(this.app, 'Test', { env: { account: ACCOUNT, region: REGION } });
  public readonly vpc = ec2.Vpc.fromVpcAttributes(this.stack, 'Vpc', {
    vpcId: 'vpc-0a1b2c3d',
    availabilityZones: ['eu-west-1a', 'eu-west-1b'],
    privateSubnetIds: ['subnet-0a', 'subnet-0b'],
    privateSubnetRouteTableIds: ['rtb-0a', 'rtb-0b'],
  });
  private readonly securityGroup = ec2.SecurityGroup.fromSecurityGroupId(this.stack, 'DbSg', 'sg-0db0db0db');
  public readonly orders = rds.DatabaseCluster.fromDatabaseClusterAttributes(this.stack, 'Orders', {
    clusterIdentifier: 'orders',
    clusterResourceIdentifier: ORDERS_ID,
    clusterEndpointAddress: 'orders.cluster-abc.eu-west-1.rds.amazonaws.com',
    readerEndpointAddress: 'orders.cluster-ro-abc.eu-west-1.rds.amazonaws.com',
    engine: rds.DatabaseClusterEngine.AURORA_POSTGRESQL,
    port: 5432,
    securityGroups: [this.securityGroup],
  });
  public readonly shop = rds.DatabaseInstance.fromDatabaseInstanceAttributes(this.stack, 'Shop', {
    instanceIdentifier: 'shop',
    instanceEndpointAddress: 'shop.abc.eu-west-1.rds.amazonaws.com',
    instanceResourceId: SHOP_ID,
    engine: rds.DatabaseInstanceEngine.MYSQL,
    port: 3306,
    securityGroups: [this.securityGroup],
  });
  public readonly secret = Secret.fromSecretCompleteArn(
    this.stack,
    'Ledger',
    `arn:aws:secretsmanager:${REGION}:${ACCOUNT}:secret:ledger-AbCdEf`,
  );

  constructor() {
    Validations.of(this.app).addPlugins(new AwsSolutionsChecks(this.app));
  }

  /** A bastion with defaults, except what is given. */
  public bastion(props: Partial<BastionProps> = {}, id = 'Prod'): Bastion {
    return new Bastion(this.stack, id, {
      vpc: this.vpc,
      targets: [this.target()],
      image: ecs.ContainerImage.fromRegistry('bastion:test'),
      ...props,
    });
  }

  /** The orders, read with an IAM token. */
  public target(user = 'db_read', access?: string): BastionTarget {
    return BastionTarget.cluster(this.orders, { credential: BastionCredential.rdsIam(user), access });
  }

  /** Reading and writing for everybody, administration behind the glass, with each kind of credential. */
  public threeLevels(): Bastion {
    return this.bastion({
      accessLevels: { read: {}, write: { reasonRequired: true }, admin: { breakGlass: true } },
      targets: [
        this.target('db_read'),
        this.target('db_write', 'write'),
        this.target('db_admin', 'admin'),
        BastionTarget.instance(this.shop, {
          credential: BastionCredential.vault({
            address: 'https://vault.example.com:8200',
            role: 'bastion-read',
            creds: 'shop/creds/read',
          }),
        }),
        BastionTarget.endpoint('ledger.example.com', {
          name: 'ledger',
          access: 'admin',
          credential: BastionCredential.secret(this.secret),
          engine: BastionEngine.POSTGRES,
          peer: ec2.Peer.ipv4('10.1.2.0/24'),
        }),
      ],
    });
  }

  public deployed(): Deployed {
    return new Deployed(this.stack);
  }
}
