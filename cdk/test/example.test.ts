import * as path from 'node:path';
import { App, type Stack, Validations } from 'aws-cdk-lib';
import { Template } from 'aws-cdk-lib/assertions';
import { Repository } from 'aws-cdk-lib/aws-ecr';
import { ContainerImage } from 'aws-cdk-lib/aws-ecs';
import { AwsSolutionsChecks } from 'cdk-nag';
import type { Construct } from 'constructs';
import { beforeAll, describe, expect, test } from 'vitest';
import { Databases, Environment } from '../bin/stacks';
import cdkJson from '../cdk.json';

/** The example, with an image that does not change with every line of the relay. */
describe('the example', () => {
  let staging: Stack;
  let prod: Stack;

  beforeAll(() => {
    const app = new App({ context: cdkJson.context });
    Validations.of(app).addPlugins(new AwsSolutionsChecks(app));
    const databases = new Databases(app, 'BastionExampleDatabases', {});
    const image = (scope: Construct) =>
      ContainerImage.fromEcrRepository(Repository.fromRepositoryName(scope, 'Image', 'bastion'), '0.1.0');
    staging = new Environment(app, 'BastionExample-staging', { databases, environmentName: 'staging', image });
    prod = new Environment(app, 'BastionExample-prod', { databases, environmentName: 'prod', image });
    // Throws on any finding of cdk-nag that has no reason, and on what CloudFormation would refuse.
    app.synth();
  });

  // `npx vitest run -u` writes it; read the difference as what a deployment would change.
  test('deploys exactly the reviewed template', async () => {
    const template = `${JSON.stringify(Template.fromStack(prod).toJSON(), undefined, 2)}\n`;
    await expect(template).toMatchFileSnapshot(path.join(__dirname, 'snapshot/bastion-example-prod.template.json'));
  });

  test('deploys the same for each environment, but for its name', () => {
    const text = (stack: Stack) => JSON.stringify(Template.fromStack(stack).toJSON());
    const names = (text: string) =>
      text.replace(/Bastion(Example)?[A-Za-z-]*[0-9A-F]{8,}/g, 'ID').replaceAll('staging', 'prod');
    expect(names(text(staging))).toBe(names(text(prod)));
  });

  test('holds the task roles to users of the cluster by its resource id', () => {
    const policies = JSON.stringify(Template.fromStack(prod).findResources('AWS::IAM::Policy'));
    for (const user of ['db_read', 'db_write', 'db_admin']) {
      expect(policies).toMatch(new RegExp(`DBClusterResourceId[^}]*}[^}]*/${user}"`));
    }
    expect(policies).not.toContain('dbuser:*');
  });
});
