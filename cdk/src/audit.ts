/** What the audit log records besides who was connected, when and to what (`docs/audit.md` of bastion). */
export class BastionAudit {
  /** Connections and identities. */
  public static readonly CONNECTIONS = new BastionAudit();
  /** And the SQL text of PostgreSQL targets that the relay logs in to. It may hold personal data. */
  public static readonly STATEMENTS = new BastionAudit('statements');
  /** The same SQL without its literals and comments. */
  public static readonly REDACTED_STATEMENTS = new BastionAudit('statements', true);

  private constructor(
    /** `audit` of the relay's configuration. */
    public readonly level?: string,
    /** `redact` of the relay's configuration. */
    public readonly redact?: boolean,
  ) {}
}
