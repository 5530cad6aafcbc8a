import { Duration } from 'aws-cdk-lib';
import jsonata from 'jsonata';
import { expect, test } from 'vitest';
import { offenders } from '../src/guard';
import { LAUNCHER } from './launcher';
import { World } from './world';

/** A task as the SDK integration of Step Functions gives it, started with the launcher's overrides. */
function task(id: string, ageMinutes: number, overrides: object = {}) {
  const Environment = LAUNCHER.environment.map((Name) => ({ Name, Value: 'x' }));
  return {
    TaskArn: `arn:aws:ecs:eu-west-1:123456789012:task/bastion-prod/${id}`,
    CreatedAt: new Date(Date.now() - ageMinutes * 60_000).toISOString(),
    Overrides: {
      ContainerOverrides: [{ Name: 'bastion', Environment }],
      InferenceAcceleratorOverrides: [],
      ...overrides,
    },
  };
}

const container = (more: object) => ({ ContainerOverrides: [{ Name: 'bastion', ...more }] });

/** What the guard stops, and why. */
async function stopped(...tasks: object[]): Promise<Record<string, string>> {
  const expression = jsonata(offenders(Duration.hours(8)));
  const found = await expression.evaluate({}, { states: { result: { Tasks: tasks } } });
  return Object.fromEntries(
    found.map(({ TaskArn, Reason }: { TaskArn: string; Reason: string }) => [TaskArn.split('/').pop(), Reason]),
  );
}

const FOREIGN = 'bastion guard: overrides that bastion up does not make';
const OLD = 'bastion guard: older than max_age';

test('the guard lets tasks be that the launcher started and that are within their age', async () => {
  expect(await stopped()).toEqual({});
  expect(await stopped(task('a', 1))).toEqual({});
  expect(await stopped(task('a', 1), task('b', 8 * 60 + 14))).toEqual({});
});

test('it stops those past their age and the time to drain', async () => {
  expect(await stopped(task('a', 8 * 60 + 16))).toEqual({ a: OLD });
  expect(await stopped(task('a', 1), task('b', 600), task('c', 6000))).toEqual({ b: OLD, c: OLD });
});

test.each([
  ['another configuration', container({ Environment: [{ Name: 'BASTION_CONFIG', Value: '{}' }] })],
  [
    'a variable beside the launcher’s',
    container({ Environment: [{ Name: 'BASTION_OWNER' }, { Name: 'AWS_ENDPOINT_URL_STS' }] }),
  ],
  ['variables from a file', container({ EnvironmentFiles: [{ Type: 's3', Value: 'arn:aws:s3:::b/x.env' }] })],
  ['a command', container({ Command: ['--config', '/x'] })],
  ['another task role', { TaskRoleArn: 'arn:aws:iam::123456789012:role/Admin' }],
  ['another execution role', { ExecutionRoleArn: 'arn:aws:iam::123456789012:role/Admin' }],
])('it stops a task with %s in its overrides', async (_, overrides) => {
  expect(await stopped(task('good', 1), task('bad', 1, overrides))).toEqual({ bad: FOREIGN });
});

test('the state machine asks for each family, follows pages, and stops with the reason', async () => {
  const world = new World();
  world.threeLevels();
  const deployed = world.deployed();
  const machine = JSON.parse(deployed.one('AWS::StepFunctions::StateMachine').DefinitionString);
  expect(machine.States.EachFamily.Items).toEqual(['bastion-prod-read', 'bastion-prod-write', 'bastion-prod-admin']);

  const { List, Describe, MoreTasks, EachOffender } = machine.States.EachFamily.ItemProcessor.States;
  const evaluate = (text: string, states: object) => jsonata(text.slice(2, -2)).evaluate({}, { states });
  const cluster = 'arn:aws:ecs:eu-west-1:123456789012:cluster/bastion-prod';
  const first = { Family: 'bastion-prod-read' };
  expect(await evaluate(List.Arguments, { input: first })).toEqual({ Cluster: cluster, ...first });
  const one = await evaluate(List.Output, { input: first, result: { TaskArns: ['a'], NextToken: 'n' } });
  expect(JSON.parse(JSON.stringify(one))).toEqual({ ...first, NextToken: 'n', Tasks: ['a'] });
  expect(await evaluate(List.Arguments, { input: one })).toEqual({ Cluster: cluster, ...first, NextToken: 'n' });
  const none = await evaluate(List.Output, { input: first, result: { TaskArns: [] } });
  expect(JSON.parse(JSON.stringify(none))).toEqual({ ...first, Tasks: [] });
  expect(await evaluate(MoreTasks.Choices[0].Condition, { input: none })).toBe(false);
  expect(await evaluate(MoreTasks.Choices[0].Condition, { input: one })).toBe(true);

  const described = await evaluate(Describe.Output, { input: one, result: { Tasks: [task('a', 6000)] } });
  expect(described.Offenders).toHaveLength(1);
  const { Stop } = EachOffender.ItemProcessor.States;
  expect(await evaluate(Stop.Arguments.Reason, { input: described.Offenders[0] })).toBe(OLD);
});

test('the guard looks every quarter of an hour and whenever a task of the families changes', () => {
  const world = new World();
  world.threeLevels();
  const deployed = world.deployed();
  expect(deployed.one('AWS::Scheduler::Schedule').ScheduleExpression).toBe('rate(15 minutes)');
  expect(deployed.one('AWS::Events::Rule').EventPattern).toEqual({
    source: ['aws.ecs'],
    'detail-type': ['ECS Task State Change'],
    detail: {
      clusterArn: ['arn:aws:ecs:eu-west-1:123456789012:cluster/bastion-prod'],
      taskDefinitionArn: ['read', 'write', 'admin'].map((level) => ({ prefix: `${DEFINITION}bastion-prod-${level}:` })),
      desiredStatus: ['RUNNING'],
    },
  });
});

const DEFINITION = 'arn:aws:ecs:eu-west-1:123456789012:task-definition/';

/** What the event says of a task, and of it what the caller of RunTask chooses (ECS API reference, RunTask). */
const EVENT = {
  source: 'aws.ecs',
  'detail-type': 'ECS Task State Change',
  detail: {
    clusterArn: 'arn:aws:ecs:eu-west-1:123456789012:cluster/bastion-prod',
    taskDefinitionArn: `${DEFINITION}bastion-prod-write:7`,
    desiredStatus: 'RUNNING',
    lastStatus: 'PROVISIONING',
  },
};
const CHOSEN = {
  group: 'x',
  startedBy: 'x',
  launchType: 'EC2',
  capacityProviderName: 'x',
  platformVersion: '1.3.0',
  enableExecuteCommand: false,
  cpu: '16384',
  memory: '32768',
  overrides: {},
};

/** EventBridge's rules for the patterns that the guard uses: each field of the pattern is in the event with one of its values. */
function matches(pattern: Record<string, unknown>, event: Record<string, unknown>): boolean {
  return Object.entries(pattern).every(([field, wanted]) => {
    const found = event[field];
    if (!Array.isArray(wanted)) {
      return found !== undefined && matches(wanted as typeof pattern, found as typeof event);
    }
    return wanted.some((one) => (one.prefix === undefined ? one === found : String(found).startsWith(one.prefix)));
  });
}

test('nothing that the caller of RunTask chooses hides a task from the guard', () => {
  const world = new World();
  world.threeLevels();
  const pattern = world.deployed().one('AWS::Events::Rule').EventPattern;
  const event = (detail: object) => ({ ...EVENT, detail: { ...EVENT.detail, ...detail } });
  expect(matches(pattern, EVENT)).toBe(true);
  expect(matches(pattern, event(CHOSEN))).toBe(true);
  expect(Object.keys(pattern.detail).filter((field) => field in CHOSEN)).toEqual([]);
  // Another family is not the guard's, not even one whose name begins alike.
  expect(matches(pattern, event({ taskDefinitionArn: `${DEFINITION}bastion-prod-writer:1` }))).toBe(false);
});
