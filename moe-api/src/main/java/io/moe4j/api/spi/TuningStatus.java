package io.moe4j.api.spi;

import java.nio.file.Path;
import java.util.Optional;

/**
 * What a backend found where tuned choices are kept.
 *
 * @param file where it looked; empty if that was turned off
 * @param usable false if there is a file and it cannot be read
 * @param entries choices in it
 * @param applying those of them that were measured on this card with these kernels
 * @param explanation a readable clause, never empty
 * @since 0.1.0
 */
public record TuningStatus(
    Optional<Path> file, boolean usable, int entries, int applying, String explanation) {}
