package io.moe4j.lora;

/**
 * Counters of a registry since it was built. An adapter counts once per batch, however many tokens
 * use it.
 *
 * @param hits adapters that a batch found in a slot
 * @param uploads adapters that a batch (or a pin) had to bring into a slot
 * @param evictions adapters that lost their slot to another
 * @param hostEvictions adapters that were unloaded to make room in the host cache
 * @param waits batches that had to wait for a slot
 * @param loadedAdapters adapters in the host cache now
 * @param occupiedSlots slots that hold an adapter now
 * @param leasedSlots slots that open batches read now
 */
public record AdapterStats(
    long hits,
    long uploads,
    long evictions,
    long hostEvictions,
    long waits,
    int loadedAdapters,
    int occupiedSlots,
    int leasedSlots) {}
