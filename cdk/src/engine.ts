/** What a target speaks. */
export class BastionEngine {
  /** MySQL, MariaDB and Aurora MySQL. */
  public static readonly MYSQL = new BastionEngine('mysql', 3306);
  /** PostgreSQL and Aurora PostgreSQL. */
  public static readonly POSTGRES = new BastionEngine('postgres', 5432);
  /** Anything else: bytes are relayed, clients log in themselves. */
  public static readonly TCP = new BastionEngine('tcp');

  private constructor(
    /** As the relay's configuration spells it. */
    public readonly name: string,
    /** The port that clients dial if none is given. */
    public readonly defaultPort?: number,
  ) {}
}
