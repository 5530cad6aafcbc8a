/**
 * The example: databases that stand for yours, and two environments of bastion.
 *
 *   npx cdk synth                                  offline, without credentials
 *   npx cdk deploy --all                           builds the image from this repository
 *   npx cdk deploy --all -c image=bastion:0.1.0    takes REPOSITORY:TAG from the account's ECR
 */
import { App, Validations } from 'aws-cdk-lib';
import { Repository } from 'aws-cdk-lib/aws-ecr';
import { ContainerImage } from 'aws-cdk-lib/aws-ecs';
import { AwsSolutionsChecks } from 'cdk-nag';
import type { Construct } from 'constructs';
import { Databases, Environment } from './stacks';

const app = new App();
Validations.of(app).addPlugins(new AwsSolutionsChecks(app));

const databases = new Databases(app, 'BastionExampleDatabases', {});
const [repository, tag = 'latest'] = String(app.node.tryGetContext('image') ?? '').split(':');
for (const environmentName of ['staging', 'prod']) {
  const image = repository
    ? (scope: Construct) =>
        ContainerImage.fromEcrRepository(Repository.fromRepositoryName(scope, 'Image', repository), tag)
    : undefined;
  new Environment(app, `BastionExample-${environmentName}`, { databases, environmentName, image });
}
