package io.moe4j.oracle;

/**
 * The state of a {@link ScratchPool}, and what it has done.
 *
 * @param pieces pieces taken from the device and not given back to it
 * @param lent those of them that forwards hold now
 * @param bytes bytes of all pieces
 * @param waits forwards that had to wait for a piece
 * @param waitNanos how long they waited, all together
 * @param timeouts those of them that gave up at the pool's deadline
 * @since 0.1.0
 */
public record ScratchStats(
    int pieces, int lent, long bytes, long waits, long waitNanos, long timeouts) {}
