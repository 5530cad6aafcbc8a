/** What the audit log records besides who was connected, when and to what (`docs/audit.md` of bastion). */
export class BastionAudit {
  /** Connections and identities. */
  public static readonly CONNECTIONS = new BastionAudit();
  /** And the SQL text of PostgreSQL and MySQL targets that the relay logs in to. It may hold personal data. */
  public static readonly STATEMENTS = new BastionAudit('statements');
  /** The same SQL without its literals and comments. */
  public static readonly REDACTED_STATEMENTS = new BastionAudit('statements', true);
  /**
   * And the key of the hashes of the whole texts in each relay's first record: who may read the log can test whether a
   * statement was a certain one, and try out what short literals were.
   */
  public static readonly REDACTED_STATEMENTS_WITH_KEY = new BastionAudit('statements', true, true);

  private constructor(
    /** `audit` of the relay's configuration. */
    public readonly level?: string,
    /** `redact` of the relay's configuration. */
    public readonly redact?: boolean,
    /** `log_hash_key` of the relay's configuration. */
    public readonly logHashKey?: boolean,
  ) {}
}
