package io.moe4j.api.tensor;

import io.moe4j.api.CheckpointException;

/**
 * Where memory comes from that somebody else can take away: a mapped file. Whoever reads such
 * memory asks before and after; what was read in between is right only if both answers are the
 * same. Safe for threads, cheap enough for every forward.
 *
 * @since 0.1.0
 */
public interface MemorySource {
  /**
   * Checks that the memory still is what it was.
   *
   * @throws CheckpointException if not; the message names the file, its length when it was mapped
   *     and now
   */
  void requireIntact();
}
