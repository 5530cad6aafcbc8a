import { ArnFormat, Duration, RemovalPolicy, Stack, Validations } from 'aws-cdk-lib';
import type { ICluster } from 'aws-cdk-lib/aws-ecs';
import { Rule } from 'aws-cdk-lib/aws-events';
import { SfnStateMachine } from 'aws-cdk-lib/aws-events-targets';
import { PolicyStatement } from 'aws-cdk-lib/aws-iam';
import type { IKey } from 'aws-cdk-lib/aws-kms';
import { LogGroup, type RetentionDays } from 'aws-cdk-lib/aws-logs';
import { Schedule, ScheduleExpression } from 'aws-cdk-lib/aws-scheduler';
import { StepFunctionsStartExecution } from 'aws-cdk-lib/aws-scheduler-targets';
import { DefinitionBody, LogLevel, QueryLanguage, StateMachine, StateMachineType } from 'aws-cdk-lib/aws-stepfunctions';
import { Construct } from 'constructs';
import { acknowledgeWildcards } from './nag';

/** The relay ends itself at its maximum age and then drains; the guard waits so much longer. */
const GRACE = Duration.minutes(15);
/** How often the guard looks, besides at every change of a task. */
const INTERVAL = Duration.minutes(15);
/** The variables that the launcher sets in a task. */
const LAUNCHER_VARIABLES = ['BASTION_OWNER', 'BASTION_REASON'];

/** What a guard watches. */
export interface GuardProps {
  readonly environment: string;
  readonly cluster: ICluster;
  readonly families: string[];
  readonly maxAge: Duration;
  readonly logRetention: RetentionDays;
  readonly encryptionKey?: IKey;
}

/**
 * The JSONata that picks, out of an answer of DescribeTasks, the tasks to stop, each with the reason.
 *
 * RunTask lets its caller override more than the launcher does (the relay's configuration, its command, the roles), and
 * IAM has no condition for it. So whatever was started with another override than the launcher's two variables is
 * stopped, usually before its container runs.
 */
export function offenders(maxAge: Duration): string {
  const names = JSON.stringify(LAUNCHER_VARIABLES);
  const oldest = maxAge.plus(GRACE).toMilliseconds();
  return `(
    $foreign := function($task) {
      $count($task.Overrides.ContainerOverrides.Environment[$not(Name in ${names})]) > 0
      or $count($task.Overrides.ContainerOverrides.EnvironmentFiles) > 0
      or $count($task.Overrides.ContainerOverrides.Command) > 0
      or $exists($task.Overrides.TaskRoleArn)
      or $exists($task.Overrides.ExecutionRoleArn)
    };
    $old := function($task) { $millis() - $toMillis($task.CreatedAt) > ${oldest} };
    [$states.result.Tasks[$foreign($) or $old($)].{
      "TaskArn": TaskArn,
      "Reason": $foreign($) ? "bastion guard: overrides that bastion up does not make" : "bastion guard: older than max_age"
    }]
  )`.replace(/\s+/g, ' ');
}

/** Stops tasks that are older than they may be or that were started in a way the launcher does not; no Lambda. */
export class Guard extends Construct {
  public readonly stateMachine: StateMachine;
  public readonly logGroup: LogGroup;

  constructor(scope: Construct, id: string, props: GuardProps) {
    super(scope, id);
    const { cluster, families } = props;
    const stack = Stack.of(this);
    this.logGroup = new LogGroup(this, 'Logs', {
      // Step Functions may write to groups of this prefix without a growing resource policy.
      logGroupName: `/aws/vendedlogs/states/bastion-${props.environment}-guard`,
      retention: props.logRetention,
      encryptionKey: props.encryptionKey,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    this.stateMachine = new StateMachine(this, 'StateMachine', {
      stateMachineType: StateMachineType.EXPRESS,
      queryLanguage: QueryLanguage.JSONATA,
      definitionBody: DefinitionBody.fromString(stack.toJsonString(definition(props))),
      logs: { destination: this.logGroup, level: LogLevel.ALL, includeExecutionData: true },
    });
    const statements = [
      new PolicyStatement({
        actions: ['ecs:ListTasks'],
        resources: ['*'],
        conditions: { ArnEquals: { 'ecs:cluster': cluster.clusterArn } },
      }),
      new PolicyStatement({
        actions: ['ecs:DescribeTasks', 'ecs:StopTask'],
        resources: [
          stack.formatArn({
            service: 'ecs',
            resource: 'task',
            resourceName: `${cluster.clusterName}/*`,
            arnFormat: ArnFormat.SLASH_RESOURCE_NAME,
          }),
        ],
      }),
    ];
    for (const statement of statements) {
      this.stateMachine.addToRolePolicy(statement);
    }
    acknowledgeWildcards(
      this.stateMachine,
      statements,
      'ListTasks has no resource to name and is held to the cluster by a condition, as log delivery has none; task ids are not known before',
    );
    new Schedule(this, 'Schedule', {
      description: `Stops bastion tasks of ${props.environment} that are past their age`,
      schedule: ScheduleExpression.rate(INTERVAL),
      target: new StepFunctionsStartExecution(this.stateMachine, { retryAttempts: 2 }),
    });
    new Rule(this, 'TaskChanged', {
      description: `Looks at bastion tasks of ${props.environment} as they start`,
      eventPattern: {
        source: ['aws.ecs'],
        detailType: ['ECS Task State Change'],
        detail: {
          clusterArn: [cluster.clusterArn],
          // Not the task group: RunTask lets its caller choose that, and a rule that looks at it sees nothing then.
          taskDefinitionArn: families.map((family) => ({
            prefix: stack.formatArn({ service: 'ecs', resource: 'task-definition', resourceName: `${family}:` }),
          })),
          desiredStatus: ['RUNNING'],
        },
      },
      targets: [new SfnStateMachine(this.stateMachine)],
    });
    Validations.of(this).acknowledge({
      id: 'AwsSolutions-SF2',
      reason: 'Three API calls in a row: the execution log says all that a trace would, and tracing costs',
    });
  }
}

/** Family by family: list, describe, stop (Amazon States Language, SDK integrations). */
function definition({ cluster, families, maxAge }: GuardProps): object {
  const retry = [
    { ErrorEquals: ['States.ALL'], IntervalSeconds: 2, MaxAttempts: 3, BackoffRate: 2, JitterStrategy: 'FULL' },
  ];
  const call = (action: string) => `arn:${Stack.of(cluster).partition}:states:::aws-sdk:ecs:${action}`;
  return {
    Comment: 'Stops bastion tasks that are too old or were started with foreign overrides',
    QueryLanguage: 'JSONata',
    TimeoutSeconds: 240,
    StartAt: 'EachFamily',
    States: {
      EachFamily: {
        Type: 'Map',
        Items: families,
        ItemSelector: { Family: '{% $states.context.Map.Item.Value %}' },
        ItemProcessor: {
          ProcessorConfig: { Mode: 'INLINE' },
          StartAt: 'List',
          States: {
            List: {
              Type: 'Task',
              Resource: call('listTasks'),
              // One expression, not one for each key: what is undefined is left out of an object and is an error alone.
              Arguments: `{% {"Cluster": "${cluster.clusterArn}", "Family": $states.input.Family, "NextToken": $states.input.NextToken} %}`,
              Output:
                '{% {"Family": $states.input.Family, "NextToken": $states.result.NextToken, "Tasks": [$states.result.TaskArns]} %}',
              Retry: retry,
              Next: 'AnyTasks',
            },
            AnyTasks: {
              Type: 'Choice',
              Choices: [{ Condition: '{% $count($states.input.Tasks) > 0 %}', Next: 'Describe' }],
              Default: 'Done',
            },
            Describe: {
              Type: 'Task',
              Resource: call('describeTasks'),
              Arguments: { Cluster: cluster.clusterArn, Tasks: '{% $states.input.Tasks %}' },
              Output: `{% {"Family": $states.input.Family, "NextToken": $states.input.NextToken, "Offenders": ${offenders(maxAge)}} %}`,
              Retry: retry,
              Next: 'EachOffender',
            },
            EachOffender: {
              Type: 'Map',
              Items: '{% $states.input.Offenders %}',
              MaxConcurrency: 5,
              ItemProcessor: {
                ProcessorConfig: { Mode: 'INLINE' },
                StartAt: 'Stop',
                States: {
                  Stop: {
                    Type: 'Task',
                    Resource: call('stopTask'),
                    Arguments: {
                      Cluster: cluster.clusterArn,
                      Task: '{% $states.input.TaskArn %}',
                      Reason: '{% $states.input.Reason %}',
                    },
                    Retry: retry,
                    End: true,
                  },
                },
              },
              Output: '{% $states.input %}',
              Next: 'MoreTasks',
            },
            MoreTasks: {
              Type: 'Choice',
              Choices: [{ Condition: '{% $exists($states.input.NextToken) %}', Next: 'List' }],
              Default: 'Done',
            },
            Done: { Type: 'Succeed' },
          },
        },
        End: true,
      },
    },
  };
}
