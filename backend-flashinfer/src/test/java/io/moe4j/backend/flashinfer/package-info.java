/**
 * Tests without a GPU and without FlashInfer: {@link io.moe4j.backend.flashinfer.Standin} stands in
 * for the libraries, {@link io.moe4j.backend.flashinfer.HostCuda} for the card.
 */
@NullMarked
package io.moe4j.backend.flashinfer;

import org.jspecify.annotations.NullMarked;
