import type { IConstruct } from 'constructs';

/** Everything that is wrong with a bastion, so that it can be said at once. */
export class Problems {
  private readonly found: string[] = [];

  /**
   * @param thing what is wrong, as the user wrote it: `target "orders"`
   * @param what the value and what is wrong with it
   * @param fix what to write instead
   */
  public add(thing: string, what: string, fix: string): void {
    this.found.push(`${thing}: ${what}; ${fix}`);
  }

  /** Throws if there is any. */
  public finish(scope: IConstruct): void {
    if (this.found.length > 0) {
      throw new Error(`bastion ${scope.node.path} cannot be synthesized:\n  - ${this.found.join('\n  - ')}`);
    }
  }
}

const NAME = /^[a-z][a-z0-9_-]{0,63}$/;

/** What the launcher and the relay take as a name of an environment, access level or target. */
export function isName(text: string): boolean {
  return NAME.test(text);
}

/** How to write one. */
export const NAME_FIX = 'use 1 to 64 lower-case letters, digits, - and _, starting with a letter';

/** A construct id as a name: `OrdersDb` → `orders-db`. */
export function nameOf(id: string): string {
  return id
    .replace(/([a-z0-9])([A-Z])/g, '$1-$2')
    .replace(/[^A-Za-z0-9_-]+/g, '-')
    .toLowerCase();
}
