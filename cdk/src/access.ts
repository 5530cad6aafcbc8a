/** What an access level asks of those who use it. */
export interface BastionAccessLevel {
  /**
   * Whether `bastion up` needs `--reason`.
   *
   * @default false
   */
  readonly reasonRequired?: boolean;
  /**
   * Whether the level is left out of the developer policy; only the break-glass policy has it then.
   *
   * @default false
   */
  readonly breakGlass?: boolean;
}
