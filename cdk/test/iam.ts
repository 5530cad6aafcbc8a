/**
 * A strict evaluator of identity policies, after the IAM User Guide ("Policy evaluation logic", "Condition operators",
 * "Policy variables"). What it does not know is an error, never a guess.
 */

/** One request: what is done, to what, and what AWS knows about it. */
export interface Request {
  readonly action: string;
  readonly resource: string;
  /** Condition keys in the spelling of AWS; a list where the key has several values. */
  readonly context: Readonly<Record<string, string | string[]>>;
}

export interface Statement {
  readonly Sid?: string;
  readonly Effect: string;
  readonly Action: string | string[];
  readonly Resource: string | string[];
  readonly Condition?: Record<string, Record<string, string | string[]>>;
}

export interface PolicyDocument {
  readonly Version: string;
  readonly Statement: Statement[];
}

/** Whether the policies together allow the request: some statement allows it and none denies it. */
export function allows(policies: PolicyDocument[], request: Request): boolean {
  const matching = policies.flatMap((policy) => policy.Statement).filter((statement) => matches(statement, request));
  return matching.length > 0 && matching.every((statement) => statement.Effect === 'Allow');
}

const STATEMENT_KEYS = ['Sid', 'Effect', 'Action', 'Resource', 'Condition'];

function matches(statement: Statement, request: Request): boolean {
  for (const key of Object.keys(statement)) {
    if (!STATEMENT_KEYS.includes(key)) {
      throw new Error(`statement key ${key} is not evaluated here`);
    }
  }
  if (!['Allow', 'Deny'].includes(statement.Effect)) {
    throw new Error(`effect ${statement.Effect} does not exist`);
  }
  return (
    list(statement.Action).some((action) => like(action.toLowerCase(), request.action.toLowerCase())) &&
    list(statement.Resource).some((resource) => likeWithVariables(resource, request.resource, request)) &&
    Object.entries(statement.Condition ?? {}).every(([operator, keys]) =>
      Object.entries(keys).every(([key, values]) => holds(operator, key, list(values), request)),
    )
  );
}

/** `actual` against `wanted`, which may hold variables; undefined where a variable has no value. */
type Operator = (wanted: string, actual: string, request: Request) => boolean;

const OPERATORS: Record<string, { readonly compare: Operator; readonly negated?: boolean }> = {
  ArnEquals: { compare: arnLike },
  ArnLike: { compare: arnLike },
  Bool: { compare: (wanted, actual) => wanted.toLowerCase() === actual.toLowerCase() },
  StringEquals: { compare: (wanted, actual, request) => substitute(wanted, request) === actual },
  StringLike: { compare: likeWithVariables },
  StringNotEquals: { compare: (wanted, actual, request) => substitute(wanted, request) === actual, negated: true },
  StringNotLike: { compare: likeWithVariables, negated: true },
};

function holds(written: string, key: string, wanted: string[], request: Request): boolean {
  const [set, rest] = written.includes(':') ? written.split(':', 2) : ['', written];
  const ifExists = rest?.endsWith('IfExists');
  const name = ifExists ? rest?.slice(0, -'IfExists'.length) : rest;
  const operator = OPERATORS[name ?? ''];
  if (operator === undefined || !['', 'ForAllValues', 'ForAnyValue'].includes(set ?? '')) {
    throw new Error(`condition operator ${written} is not evaluated here`);
  }
  const actual = contextValue(key, request);
  const matched = (value: string) => {
    const any = wanted.some((one) => operator.compare(one, value, request));
    return operator.negated ? !any : any;
  };
  if (set === 'ForAllValues') {
    return list(actual ?? []).every(matched);
  }
  if (actual === undefined) {
    return ifExists || (operator.negated ?? false);
  }
  if (set === 'ForAnyValue') {
    return list(actual).some(matched);
  }
  if (Array.isArray(actual)) {
    throw new Error(`${key} has several values, and ${written} takes one`);
  }
  return matched(actual);
}

/** Names of condition keys are compared without case. */
function contextValue(key: string, request: Request): string | string[] | undefined {
  const found = Object.entries(request.context).find(([name]) => name.toLowerCase() === key.toLowerCase());
  return found?.[1];
}

/** The text with its variables replaced, as text; undefined where one has no value: then nothing matches. */
function substitute(text: string, request: Request): string | undefined {
  const parts = pieces(text, request);
  return parts?.map(([part]) => part).join('');
}

/** Pieces of a pattern and whether wildcards count in them: those in the value of a variable do not. */
function pieces(text: string, request: Request): [string, boolean][] | undefined {
  const found: [string, boolean][] = [];
  for (const part of text.split(/(\$\{[^}]*\})/)) {
    const variable = /^\$\{([^}]*)\}$/.exec(part)?.[1];
    if (variable === undefined) {
      found.push([part, true]);
    } else if (['*', '?', '$'].includes(variable)) {
      found.push([variable, false]);
    } else {
      const value = contextValue(variable, request);
      if (typeof value !== 'string') {
        return undefined;
      }
      found.push([value, false]);
    }
  }
  return found;
}

function likeWithVariables(pattern: string, text: string, request: Request): boolean {
  const parts = pieces(pattern, request);
  return parts !== undefined && regex(parts).test(text);
}

function like(pattern: string, text: string): boolean {
  return regex([[pattern, true]]).test(text);
}

function regex(parts: [string, boolean][]): RegExp {
  const escaped = (text: string) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  const source = parts.map(([text, wild]) =>
    wild ? escaped(text).replaceAll('\\*', '.*').replaceAll('\\?', '.') : escaped(text),
  );
  return new RegExp(`^${source.join('')}$`, 's');
}

/** Each of the six parts of the ARN by itself (IAM User Guide, "ARN condition operators"). */
function arnLike(pattern: string, text: string, request: Request): boolean {
  const parts = (arn: string) => {
    const [head, ...rest] = [arn.split(':').slice(0, 5), arn.split(':').slice(5).join(':')];
    return [...(head as string[]), ...(rest as string[])];
  };
  const [wanted, actual] = [parts(pattern), parts(text)];
  return wanted.every((part, index) => likeWithVariables(part, actual[index] ?? '', request));
}

function list<T>(value: T | T[]): T[] {
  return Array.isArray(value) ? value : [value];
}
