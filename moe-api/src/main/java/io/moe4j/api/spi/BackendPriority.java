package io.moe4j.api.spi;

/**
 * Steps of the priorities of the project's own backends, so that others can stand between them. The
 * table of {@code moe backends} shows what each backend says for a layer.
 *
 * <table>
 * <caption>Ladder</caption>
 * <tr><th>value</th><th>who</th></tr>
 * <tr><td>{@value #REFERENCE}</td><td>readable references: right, slow, never chosen while anything else fits</td></tr>
 * <tr><td>{@value #CPU}</td><td>host processor</td></tr>
 * <tr><td>{@value #GPU_PORTABLE}</td><td>GPU kernels that run on any supported card</td></tr>
 * <tr><td>600</td><td>GPU kernels for weights that only they keep packed (marlin)</td></tr>
 * <tr><td>{@value #GPU_TUNED}</td><td>GPU kernels for one architecture</td></tr>
 * </table>
 *
 * @since 0.1.0
 */
public final class BackendPriority {
  /** Readable references. */
  public static final int REFERENCE = -1000;

  /** Host processor. */
  public static final int CPU = 100;

  /** GPU kernels that run on any supported card. */
  public static final int GPU_PORTABLE = 500;

  /** GPU kernels for one architecture. */
  public static final int GPU_TUNED = 700;

  private BackendPriority() {}
}
