import { describe, expect, test } from 'vitest';
import { allows, type PolicyDocument, type Request, type Statement } from './iam';

const policy = (...statements: Partial<Statement>[]): PolicyDocument => ({
  Version: '2012-10-17',
  Statement: statements.map((statement) => ({ Effect: 'Allow', Action: '*', Resource: '*', ...statement })),
});
const request = (context: Request['context'] = {}, resource = 'arn:aws:ecs:r:1:task/c/1'): Request => ({
  action: 'ecs:StopTask',
  resource,
  context,
});
const when = (operator: string, key: string, value: string | string[]) =>
  policy({ Condition: { [operator]: { [key]: value } } });

describe('the evaluator', () => {
  test('denies what nothing allows, and what something denies', () => {
    expect(allows([], request())).toBe(false);
    expect(allows([policy({ Action: 'ecs:RunTask' })], request())).toBe(false);
    expect(allows([policy({})], request())).toBe(true);
    expect(allows([policy({}, { Effect: 'Deny', Action: 'ECS:stop*' })], request())).toBe(false);
    expect(allows([policy({}), policy({ Effect: 'Deny', Resource: '*/c/2' })], request())).toBe(true);
  });

  test.each([
    ['arn:aws:ecs:r:1:task/c/1', true],
    ['arn:aws:ecs:r:1:task/c/*', true],
    ['arn:aws:ecs:r:1:task/?/1', true],
    ['arn:aws:ecs:r:1:task/c', false],
    ['arn:aws:ecs:r:1:task/c/1/*', false],
    ['arn.aws.ecs.r.1.task/c/1', false],
  ])('matches the resource with %s: %s', (Resource, expected) => {
    expect(allows([policy({ Resource })], request())).toBe(expected);
  });

  test.each([
    ['StringEquals', 'a', 'a', true],
    ['StringEquals', ['b', 'a'], 'a', true],
    ['StringEquals', 'a*', 'ab', false],
    ['StringEquals', 'a', 'A', false],
    ['StringEquals', 'a', undefined, false],
    ['StringEqualsIfExists', 'a', undefined, true],
    ['StringEqualsIfExists', 'a', 'b', false],
    ['StringLike', 'a*', 'ab', true],
    ['StringLike', 'a?', 'a', false],
    ['StringNotEquals', 'a', 'b', true],
    ['StringNotEquals', ['a', 'b'], 'b', false],
    ['StringNotEquals', 'a', undefined, true],
    ['StringNotLike', 'a*', 'ab', false],
    ['BoolIfExists', 'true', undefined, true],
    ['BoolIfExists', 'true', 'false', false],
    ['Bool', 'true', 'True', true],
    ['ForAllValues:StringEquals', ['a', 'b'], ['a'], true],
    ['ForAllValues:StringEquals', ['a', 'b'], ['a', 'c'], false],
    ['ForAllValues:StringEquals', ['a'], undefined, true],
    ['ForAnyValue:StringEquals', ['a'], ['a', 'c'], true],
    ['ForAnyValue:StringEquals', ['a'], undefined, false],
    ['ArnEquals', 'arn:aws:ecs:*:1:cluster/c', 'arn:aws:ecs:r:1:cluster/c', true],
    ['ArnEquals', 'arn:aws:ecs:*:cluster/c', 'arn:aws:ecs:r:1:cluster/c', false],
    ['ArnLike', 'arn:aws:ecs:r:1:*', 'arn:aws:ecs:r:1:cluster/c:d', true],
  ])('%s %j of %j is %s', (operator, wanted, actual, expected) => {
    const context: Request['context'] = actual === undefined ? {} : { 'aws:k': actual };
    expect(allows([when(operator, 'AWS:K', wanted)], request(context))).toBe(expected);
  });

  test('puts the value of a variable in as text: a * in it is no wildcard', () => {
    const own = when('StringEquals', 'aws:ResourceTag/user', '${aws:userid}');
    const tagged = (tag: string, userid?: string) =>
      request({ 'aws:ResourceTag/user': tag, ...(userid === undefined ? {} : { 'aws:userid': userid }) });
    expect(allows([own], tagged('AROA:alice', 'AROA:alice'))).toBe(true);
    expect(allows([own], tagged('AROA:alice', 'AROA:bob'))).toBe(false);
    expect(allows([own], tagged('', undefined))).toBe(false);
    const sessions = policy({ Resource: 'session/${aws:userid}-*' });
    expect(allows([sessions], request({ 'aws:userid': 'a' }, 'session/a-1'))).toBe(true);
    expect(allows([sessions], request({ 'aws:userid': '*' }, 'session/b-1'))).toBe(false);
    expect(allows([sessions], request({}, 'session/-1'))).toBe(false);
    expect(allows([policy({ Resource: '${*}' })], request({}, '*'))).toBe(true);
    expect(allows([policy({ Resource: '${*}' })], request({}, 'a'))).toBe(false);
  });

  test('every condition of a statement must hold, and one of several statements is enough', () => {
    const both = policy({ Condition: { StringEquals: { 'aws:a': '1', 'aws:b': '2' } } });
    expect(allows([both], request({ 'aws:a': '1' }))).toBe(false);
    expect(allows([both], request({ 'aws:a': '1', 'aws:b': '2' }))).toBe(true);
    expect(allows([both, when('StringEquals', 'aws:a', '1')], request({ 'aws:a': '1' }))).toBe(true);
  });

  test('what it does not know is an error', () => {
    expect(() => allows([when('NumericEquals', 'aws:k', '1')], request())).toThrow('NumericEquals');
    expect(() => allows([policy({ NotAction: '*' } as Partial<Statement>)], request())).toThrow('NotAction');
    expect(() => allows([policy({ Effect: 'allow' })], request())).toThrow('effect');
    expect(() => allows([when('StringEquals', 'aws:k', 'a')], request({ 'aws:k': ['a'] }))).toThrow('several values');
  });
});
