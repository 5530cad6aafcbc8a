import { Stack, Validations } from 'aws-cdk-lib';
import type { PolicyStatement } from 'aws-cdk-lib/aws-iam';
import type { IConstruct } from 'constructs';

/**
 * Acknowledges, for cdk-nag's rule on wildcards, exactly the wildcards of these statements on this construct: another
 * wildcard that comes in later is still found.
 */
export function acknowledgeWildcards(scope: IConstruct, statements: PolicyStatement[], reason: string): void {
  const stack = Stack.of(scope);
  const resources = new Set(statements.flatMap((statement) => statement.resources));
  for (const resource of resources) {
    // cdk-nag writes variables of policies as it writes references.
    const text = flat(stack.resolve(resource)).replace(/\$\{([^}]+)\}/g, '<$1>');
    if (text.includes('*')) {
      Validations.of(scope).acknowledge({ id: `AwsSolutions-IAM5[Resource::${text}]`, reason });
    }
  }
}

/** As cdk-nag writes a value with references: `arn:<AWS::Partition>:…`. */
function flat(value: unknown): string {
  if (typeof value !== 'object' || value === null) {
    return String(value);
  }
  const [[kind, argument] = ['', '']] = Object.entries(value);
  switch (kind) {
    case 'Ref':
      return `<${argument}>`;
    case 'Fn::GetAtt':
      return `<${argument.join('.')}>`;
    case 'Fn::Join':
      return argument[1].map(flat).join(argument[0]);
    default:
      return JSON.stringify(value);
  }
}
