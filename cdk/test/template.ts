import type { Stack } from 'aws-cdk-lib';
import { Template } from 'aws-cdk-lib/assertions';
import type { PolicyDocument } from './iam';

export const ACCOUNT = '123456789012';
export const REGION = 'eu-west-1';

// biome-ignore lint/suspicious/noExplicitAny: a template is any JSON
type Json = any;

/** A synthesized template with every reference replaced by what AWS would put there. */
export class Deployed {
  private readonly resources: Record<string, { Type: string; Properties: Json }>;

  constructor(stack: Stack) {
    this.resources = Template.fromStack(stack).toJSON().Resources;
  }

  /** The properties of all resources of a type, by logical id. */
  public all(type: string): Record<string, Json> {
    const found = Object.entries(this.resources).filter(([, resource]) => resource.Type === type);
    return Object.fromEntries(found.map(([id, resource]) => [id, this.value(resource.Properties)]));
  }

  /** The properties of the only resource of a type whose logical id has the text in it. */
  public one(type: string, id = ''): Json {
    const found = Object.entries(this.all(type)).filter(([logicalId]) => logicalId.includes(id));
    if (found.length !== 1) {
      throw new Error(`${found.length} resources of ${type} with "${id}": ${found.map(([name]) => name).join(', ')}`);
    }
    return found[0]?.[1];
  }

  /** The document of a managed policy. */
  public managedPolicy(id: string): PolicyDocument {
    return this.one('AWS::IAM::ManagedPolicy', id).PolicyDocument;
  }

  /** The inline policies of a role. */
  public rolePolicies(id: string): PolicyDocument[] {
    return Object.values(this.all('AWS::IAM::Policy'))
      .filter((policy) => policy.Roles.some((role: string) => role.includes(id)))
      .map((policy) => policy.PolicyDocument);
  }

  private value(value: Json): Json {
    if (Array.isArray(value)) {
      return value.map((one) => this.value(one));
    }
    if (typeof value !== 'object' || value === null) {
      return value;
    }
    const entries = Object.entries(value);
    const [kind, argument] = entries[0] ?? ['', undefined];
    if (entries.length === 1 && (kind === 'Ref' || kind.startsWith('Fn::'))) {
      return this.intrinsic(kind, argument);
    }
    return Object.fromEntries(entries.map(([key, one]) => [key, this.value(one)]));
  }

  private intrinsic(kind: string, argument: Json): Json {
    switch (kind) {
      case 'Ref':
        return this.ref(argument);
      case 'Fn::GetAtt':
        return this.attribute(argument[0], argument[1]);
      case 'Fn::Join':
        return this.value(argument[1]).join(argument[0]);
      case 'Fn::Sub':
        return { [kind]: argument };
      default:
        throw new Error(`${kind} is not resolved here`);
    }
  }

  private ref(name: string): string {
    const pseudo: Record<string, string> = {
      'AWS::AccountId': ACCOUNT,
      'AWS::Partition': 'aws',
      'AWS::Region': REGION,
      'AWS::URLSuffix': 'amazonaws.com',
    };
    const resource = this.resources[name];
    switch (resource?.Type) {
      case 'AWS::ECS::Cluster':
        return resource.Properties.ClusterName;
      case 'AWS::Logs::LogGroup':
        return resource.Properties.LogGroupName;
      default:
        return pseudo[name] ?? name;
    }
  }

  private attribute(name: string, attribute: string): string {
    const type = this.resources[name]?.Type;
    const kinds: Record<string, string> = {
      'AWS::ECS::Cluster': `ecs:${REGION}:${ACCOUNT}:cluster/`,
      'AWS::IAM::Role': `iam::${ACCOUNT}:role/`,
    };
    const kind = kinds[type ?? ''];
    return attribute === 'Arn' && kind !== undefined ? `arn:aws:${kind}${this.ref(name)}` : `${name}.${attribute}`;
  }
}
