import { Duration, Stack } from 'aws-cdk-lib';
import {
  Alarm,
  ComparisonOperator,
  Dashboard,
  GraphWidget,
  type IAlarmAction,
  LogQueryWidget,
  Metric,
  Stats,
  TreatMissingData,
} from 'aws-cdk-lib/aws-cloudwatch';
import { FilterPattern, type ILogGroup } from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';
import type { Guard } from './guard';

/** The namespace of the metrics that are counted out of log lines. */
const NAMESPACE = 'Bastion';

/** What is watched. */
export interface MonitoringProps {
  readonly environment: string;
  readonly logGroup: ILogGroup;
  readonly guard: Guard;
  readonly dashboard: boolean;
  readonly alarmActions: IAlarmAction[];
}

/** Alarms for what a person must look at, and a dashboard of who used the bastion. */
export class Monitoring extends Construct {
  /** Every alarm, for actions of one's own. */
  public readonly alarms: Alarm[];

  constructor(scope: Construct, id: string, props: MonitoringProps) {
    super(scope, id);
    const { environment, logGroup, guard } = props;
    const count = (name: string, group: ILogGroup, pattern: string): Metric => {
      const metricName = `${environment}-${name}`;
      group.addMetricFilter(name, {
        filterPattern: FilterPattern.literal(pattern),
        metricNamespace: NAMESPACE,
        metricName,
        metricValue: '1',
      });
      const period = Duration.minutes(5);
      return new Metric({ namespace: NAMESPACE, metricName, statistic: Stats.SUM, period });
    };
    const stopped = count('TasksStopped', guard.logGroup, '{ $.type = "TaskStateEntered" && $.details.name = "Stop" }');
    const refused = count('RefusedIdentities', logGroup, REFUSED_IDENTITIES);
    const failed = count('AuthenticationFailures', logGroup, AUTHENTICATION_FAILURES);
    const broken = guard.stateMachine.metricFailed({ period: Duration.minutes(15), statistic: Stats.SUM });

    const alarm = (name: string, metric: Metric, threshold: number, description: string) => {
      const made = new Alarm(this, name, {
        alarmName: `bastion-${environment}-${name}`,
        alarmDescription: `${description} (docs/security.md of bastion)`,
        metric,
        threshold,
        evaluationPeriods: 1,
        comparisonOperator: ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
        treatMissingData: TreatMissingData.NOT_BREACHING,
      });
      made.addAlarmAction(...props.alarmActions);
      return made;
    };
    this.alarms = [
      alarm('TaskTooLong', stopped, 1, 'The guard stopped a task: too old, or started with foreign overrides'),
      alarm('GuardBroken', broken, 1, 'The guard itself failed: tasks past their age may be running'),
      alarm('RefusedIdentities', refused, 1, 'Somebody tried to use a bastion that is not theirs'),
      alarm('AuthenticationFailures', failed, 5, 'Databases refuse the logins of the bastion'),
    ];
    if (props.dashboard) {
      this.addDashboard(props, [stopped, refused, failed]);
    }
  }

  private addDashboard(props: MonitoringProps, metrics: Metric[]): void {
    const region = Stack.of(this).region;
    const logGroupNames = [props.logGroup.logGroupName];
    new Dashboard(this, 'Dashboard', {
      dashboardName: `bastion-${props.environment}`,
      widgets: [
        [new GraphWidget({ title: 'What needs a look', region, left: metrics, width: 24, stacked: true })],
        [
          new LogQueryWidget({
            title: 'Who was connected',
            region,
            logGroupNames,
            width: 24,
            height: 10,
            queryLines: CONNECTIONS,
          }),
        ],
      ],
    });
  }
}

/**
 * Lines of the relay. The terms are texts of `src/relay`; `tests/contract.rs` fails if one is not there any more.
 */
const REFUSED_IDENTITIES = '"a caller was refused" "not_owner"';
const AUTHENTICATION_FAILURES = '"connection refused" "upstream_auth"';
const CONNECTIONS = [
  'filter message in ["connection ready", "connection refused", "a caller was refused"]',
  'fields @timestamp, message, person, `target`, db_user, `client.program`, error',
  'sort @timestamp desc',
  'limit 100',
];
