package io.moe4j.backend.cpu;

import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import org.jspecify.annotations.Nullable;

/**
 * What one call of {@link GroupedMlp} computes.
 *
 * @param hidden {@code [T, H]} of {@code hiddenType} from its start
 * @param ids int32 {@code [T, K]}; null = every pair goes to MLP 0
 * @param weights F32 {@code [T, K]}; null = 1
 * @param map int32 global to local; null = ids are local
 * @param lora adapters or null
 * @param output {@code [T, H]} of {@code outputType}
 */
record MlpCall(
    MemorySegment hidden,
    DType hiddenType,
    int tokens,
    int topK,
    @Nullable MemorySegment ids,
    @Nullable MemorySegment weights,
    @Nullable MemorySegment map,
    @Nullable MoeLoraContext lora,
    MemorySegment output,
    DType outputType) {}
