import * as ec2 from 'aws-cdk-lib/aws-ec2';
import { Construct } from 'constructs';

/** Where the endpoints are made and who uses them. */
export interface EndpointsProps {
  readonly vpc: ec2.IVpc;
  readonly subnets: ec2.ISubnet[];
  readonly from: ec2.IConnectable;
}

/** What a task calls: sessions, its image and its layers, logs, the proof of identity, secrets. */
const SERVICES: readonly [string, ec2.InterfaceVpcEndpointAwsService][] = [
  ['SsmMessages', ec2.InterfaceVpcEndpointAwsService.SSM_MESSAGES],
  ['EcrApi', ec2.InterfaceVpcEndpointAwsService.ECR],
  ['EcrDocker', ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER],
  ['Logs', ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS],
  ['Sts', ec2.InterfaceVpcEndpointAwsService.STS],
  ['SecretsManager', ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER],
];

/** The VPC endpoints that a task needs where there is no NAT gateway. */
export class Endpoints extends Construct {
  constructor(scope: Construct, id: string, props: EndpointsProps) {
    super(scope, id);
    const { vpc, from } = props;
    const subnets = { subnets: props.subnets };
    const securityGroup = new ec2.SecurityGroup(this, 'SecurityGroup', {
      vpc,
      description: 'AWS services for bastion tasks',
      allowAllOutbound: false,
    });
    securityGroup.connections.allowFrom(from, ec2.Port.tcp(443), 'from bastion tasks');
    for (const [name, service] of SERVICES) {
      new ec2.InterfaceVpcEndpoint(this, name, { vpc, service, subnets, securityGroups: [securityGroup], open: false });
    }
    new ec2.GatewayVpcEndpoint(this, 'S3', { vpc, service: ec2.GatewayVpcEndpointAwsService.S3, subnets: [subnets] });
  }
}
