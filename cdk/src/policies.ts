import { ArnFormat, type Stack } from 'aws-cdk-lib';
import { PolicyStatement } from 'aws-cdk-lib/aws-iam';

/** What the policies speak about. */
export interface PolicyScope {
  readonly stack: Stack;
  readonly environment: string;
  readonly clusterArn: string;
  readonly clusterName: string;
  readonly documentName: string;
  readonly parameterName: string;
  readonly executionRoleArn: string;
  /** By access level. */
  readonly levels: ReadonlyMap<string, { readonly family: string; readonly taskRoleArn: string }>;
}

/** The tags that the launcher gives a task. */
const TAGS = ['bastion:access', 'bastion:env', 'bastion:owner', 'bastion:reason', 'bastion:user'];
/** Whoever calls, as IAM knows them; the launcher writes the same into the tag `bastion:user`. */
const CALLER = '${aws:userid}';
/** A session without a document of its own would be a shell; the check makes Session Manager ask for the document too. */
const DOCUMENT_CHECK = { BoolIfExists: { 'ssm:SessionDocumentAccessCheck': 'true' } };

/** What the launcher does for somebody who may use these access levels: exactly its calls, on their own tasks. */
export function developerStatements(scope: PolicyScope, levels: readonly string[]): PolicyStatement[] {
  const { environment, clusterArn } = scope;
  const tasks = arn(scope, 'ecs', 'task', `${scope.clusterName}/*`);
  const chosen = levels.flatMap((level) => scope.levels.get(level) ?? []);
  return [
    new PolicyStatement({
      sid: 'RunOwnTasks',
      actions: ['ecs:RunTask'],
      resources: chosen.map(({ family }) => arn(scope, 'ecs', 'task-definition', `${family}:*`)),
      conditions: {
        ArnEquals: { 'ecs:cluster': clusterArn },
        StringEquals: {
          'aws:RequestTag/bastion:access': levels,
          'aws:RequestTag/bastion:env': environment,
          'aws:RequestTag/bastion:user': CALLER,
        },
        'ForAllValues:StringEquals': { 'aws:TagKeys': TAGS },
      },
    }),
    new PolicyStatement({
      sid: 'TagOwnTasksWhenTheyStart',
      actions: ['ecs:TagResource'],
      resources: [tasks],
      conditions: {
        StringEquals: { 'ecs:CreateAction': 'RunTask', 'aws:RequestTag/bastion:user': CALLER },
      },
    }),
    new PolicyStatement({
      sid: 'PassTheRolesOfTheTask',
      actions: ['iam:PassRole'],
      resources: [scope.executionRoleArn, ...chosen.map(({ taskRoleArn }) => taskRoleArn)],
      conditions: { StringEquals: { 'iam:PassedToService': 'ecs-tasks.amazonaws.com' } },
    }),
    new PolicyStatement({
      sid: 'ListTasks',
      actions: ['ecs:ListTasks'],
      resources: ['*'],
      conditions: { ArnEquals: { 'ecs:cluster': clusterArn } },
    }),
    new PolicyStatement({ sid: 'DescribeTasks', actions: ['ecs:DescribeTasks'], resources: [tasks] }),
    new PolicyStatement({
      sid: 'StopOwnTasks',
      actions: ['ecs:StopTask'],
      resources: [tasks],
      conditions: { StringEquals: { 'aws:ResourceTag/bastion:user': CALLER } },
    }),
    // Targets and documents apart: a document carries no owner, so one statement for both would never match.
    new PolicyStatement({
      sid: 'EnterOwnTasks',
      actions: ['ssm:StartSession'],
      resources: [tasks],
      conditions: { StringEquals: { 'aws:ResourceTag/bastion:user': CALLER }, ...DOCUMENT_CHECK },
    }),
    new PolicyStatement({
      sid: 'ToTheRelaysPortOnly',
      actions: ['ssm:StartSession'],
      resources: [arn(scope, 'ssm', 'document', scope.documentName)],
      conditions: DOCUMENT_CHECK,
    }),
    new PolicyStatement({
      sid: 'ResumeAndEndOwnSessions',
      actions: ['ssm:ResumeSession', 'ssm:TerminateSession'],
      resources: [arn(scope, 'ssm', 'session', '*')],
      conditions: { StringEquals: { 'ssm:resourceTag/aws:ssmmessages:session-id': CALLER } },
    }),
    // Sessions of a role are named after its session name, which no policy variable has alone; a pattern with the user id
    // would match none of them. What opens a channel is the token of StartSession and ResumeSession, which only the
    // session's owner gets.
    new PolicyStatement({
      sid: 'OpenDataChannels',
      actions: ['ssmmessages:OpenDataChannel'],
      resources: [arn(scope, 'ssm', 'session', '*')],
    }),
    new PolicyStatement({
      sid: 'ReadTheEnvironment',
      actions: ['ssm:GetParameter'],
      resources: [arn(scope, 'ssm', 'parameter', scope.parameterName.replace(/^\//, ''))],
    }),
  ];
}

/** Every access level, and the end of anybody's task of this environment. */
export function breakGlassStatements(scope: PolicyScope): PolicyStatement[] {
  return [
    ...developerStatements(scope, [...scope.levels.keys()]),
    new PolicyStatement({
      sid: 'StopAnyTaskOfTheEnvironment',
      actions: ['ecs:StopTask'],
      resources: [arn(scope, 'ecs', 'task', `${scope.clusterName}/*`)],
      conditions: { StringEquals: { 'aws:ResourceTag/bastion:env': scope.environment } },
    }),
  ];
}

function arn({ stack }: PolicyScope, service: string, resource: string, resourceName: string): string {
  return stack.formatArn({ service, resource, resourceName, arnFormat: ArnFormat.SLASH_RESOURCE_NAME });
}
