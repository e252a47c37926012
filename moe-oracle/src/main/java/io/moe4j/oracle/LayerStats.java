package io.moe4j.oracle;

/**
 * What a layer has done since it was built, and the memory it stands for. Counters only grow.
 *
 * @param forwards forwards that ended well, sessions included
 * @param failures forwards that threw after their arguments were accepted
 * @param tokens tokens of the forwards that ended well
 * @param nanos time in those forwards, waiting for scratch included; on a device other than the
 *     host until they were enqueued
 * @param weightBytes bytes of all weights as given; mapped ones are memory that processes share
 * @param scratchBytes bytes of the scratch that one forward holds while it runs
 * @since 0.1.0
 */
public record LayerStats(
    long forwards, long failures, long tokens, long nanos, long weightBytes, long scratchBytes) {}
