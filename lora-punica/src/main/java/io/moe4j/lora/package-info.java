/**
 * LoRA at run time: which adapters are loaded ({@link io.moe4j.lora.AdapterRegistry}), which of
 * them one forward uses ({@link io.moe4j.lora.AdapterBatch}), and how deltas are added for backends
 * that do not fuse them ({@link io.moe4j.lora.CpuPunicaWrapper}).
 *
 * <pre>{@code
 * try (var registry = AdapterRegistry.builder(configByLayer).maxLoras(8).build()) {
 *   registry.load(adapter);
 *   try (var batch = registry.batch(Arrays.asList("sql", null, "chat"))) { // one entry per token
 *     layer.forward(..., Optional.of(batch.context(layerIndex)), ...);
 *   }
 * }
 * }</pre>
 */
@NullMarked
package io.moe4j.lora;

import org.jspecify.annotations.NullMarked;
