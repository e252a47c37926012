/**
 * LoRA on NVIDIA GPUs for experts that do not fuse it: {@link
 * io.moe4j.lora.cuda.CudaPunicaWrapper}, found by a registry through {@link
 * io.moe4j.api.spi.PunicaProvider}.
 */
@NullMarked
package io.moe4j.lora.cuda;

import org.jspecify.annotations.NullMarked;
