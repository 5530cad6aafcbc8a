import { Duration, Stack } from 'aws-cdk-lib';
import {
  Alarm,
  ComparisonOperator,
  Dashboard,
  GraphWidget,
  type IAlarmAction,
  type IMetric,
  LogQueryWidget,
  MathExpression,
  Metric,
  Stats,
  TreatMissingData,
} from 'aws-cdk-lib/aws-cloudwatch';
import { FilterPattern, type ILogGroup } from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';
import type { Guard } from './guard';

/** The namespace of the relay's own metrics and of those that are counted out of its records. */
const NAMESPACE = 'Bastion';

/** What is watched. */
export interface MonitoringProps {
  readonly environment: string;
  readonly logGroup: ILogGroup;
  readonly guard: Guard;
  /** The targets of each access level whose relays write metrics. */
  readonly targets: { readonly access: string; readonly names: string[] }[];
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
    const count = (name: string, group: ILogGroup, fields: Record<string, string>): Metric => {
      const metricName = `${environment}-${name}`;
      group.addMetricFilter(name, {
        filterPattern: FilterPattern.all(
          ...Object.entries(fields).map(([field, value]) => FilterPattern.stringValue(`$.${field}`, '=', value)),
        ),
        metricNamespace: NAMESPACE,
        metricName,
        metricValue: '1',
      });
      const period = Duration.minutes(5);
      return new Metric({ namespace: NAMESPACE, metricName, statistic: Stats.SUM, period });
    };
    const stopped = count('TasksStopped', guard.logGroup, { type: 'TaskStateEntered', 'details.name': 'Stop' });
    const refused = count('RefusedIdentities', logGroup, REFUSED_IDENTITIES);
    const failed = count('AuthenticationFailures', logGroup, AUTHENTICATION_FAILURES);
    const runs = { period: Duration.minutes(15), statistic: Stats.SUM };
    // An execution that runs into the state machine's time limit counts as timed out and not as failed.
    const broken = new MathExpression({
      // A metric without a data point is missing, and a sum with it would be missing too.
      expression: 'FILL(failed, 0) + FILL(timedOut, 0) + FILL(aborted, 0)',
      usingMetrics: {
        failed: guard.stateMachine.metricFailed(runs),
        timedOut: guard.stateMachine.metricTimedOut(runs),
        aborted: guard.stateMachine.metricAborted(runs),
      },
      label: 'Executions that did not succeed',
      period: runs.period,
    });

    const alarm = (name: string, metric: IMetric, threshold: number, description: string) => {
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

  /** What the relays say of themselves, where they do. */
  private graphs({ environment, targets }: MonitoringProps): GraphWidget[] {
    const metric = (metricName: string, dimensions: Record<string, string>, label: string) =>
      new Metric({
        namespace: NAMESPACE,
        metricName,
        dimensionsMap: { env: environment, ...dimensions },
        label,
        // Each relay tells once a minute what came since.
        statistic: Stats.SUM,
        period: Duration.minutes(1),
      });
    const ofTargets = (...names: string[]) =>
      targets.flatMap(({ access, names: known }) =>
        known.flatMap((target) => names.map((name) => metric(name, { access, target }, `${access} ${target} ${name}`))),
      );
    const ofCallers = (...names: string[]) =>
      targets.flatMap(({ access }) => names.map((name) => metric(name, { access }, `${access} ${name}`)));
    const { region } = Stack.of(this);
    const width = 8;
    return [
      new GraphWidget({ title: 'Open connections', region, width, left: ofTargets('OpenConnections'), stacked: true }),
      new GraphWidget({ title: 'Bytes', region, width, left: ofTargets('BytesUp', 'BytesDown') }),
      new GraphWidget({
        title: 'Came and refused',
        region,
        width,
        left: [...ofTargets('Connections', 'RefusedConnections'), ...ofCallers('AuthorizedCallers', 'RefusedCallers')],
      }),
    ];
  }

  private addDashboard(props: MonitoringProps, metrics: Metric[]): void {
    const region = Stack.of(this).region;
    const logGroupNames = [props.logGroup.logGroupName];
    new Dashboard(this, 'Dashboard', {
      dashboardName: `bastion-${props.environment}`,
      widgets: [
        [new GraphWidget({ title: 'What needs a look', region, left: metrics, width: 24, stacked: true })],
        ...(props.targets.length > 0 ? [this.graphs(props)] : []),
        [
          new LogQueryWidget({
            title: 'Who was connected',
            region,
            logGroupNames,
            width: 24,
            height: 10,
            queryLines: RECORDS,
          }),
        ],
      ],
    });
  }
}

/*
 * Records of the relay's audit log (docs/audit.md of bastion). `tests/it/deployed.rs` lets a real relay write them and
 * compares.
 */
const REFUSED_IDENTITIES = { event: 'identity_refused', kind: 'not_owner' };
const AUTHENTICATION_FAILURES = { event: 'connection_refused', kind: 'upstream_auth' };
const RECORDS = [
  'filter event in ["connection_opened", "connection_closed", "connection_refused", "identity_refused"]',
  'fields time, event, access, session_name, person, reason, `target`, db_user, client_program, ended_by, kind, error',
  'sort @timestamp desc',
  'limit 100',
];
