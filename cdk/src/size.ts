/**
 * How large the task is. The relay needs little; the encryption of many or fast connections needs CPU.
 */
export class BastionSize {
  /** A quarter of a vCPU: one person, interactive queries. */
  public static readonly SMALL = new BastionSize(256, 512);
  /** Half a vCPU: dumps and restores through several sessions. */
  public static readonly MEDIUM = new BastionSize(512, 1024);
  /** One vCPU: long bulk work. */
  public static readonly LARGE = new BastionSize(1024, 2048);

  private constructor(
    /** CPU units of the task. */
    public readonly cpu: number,
    /** Memory of the task, in MiB. */
    public readonly memoryLimitMiB: number,
  ) {}
}
