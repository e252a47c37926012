/**
 * Experts on NVIDIA GPUs by the FlashInfer that is installed on the machine. FlashInfer's compiled
 * modules speak TVM-FFI, a calling convention in plain C, and hold no Python and no torch: {@link
 * io.moe4j.backend.flashinfer.FlashInferLibrary} looks for them, the {@code Tvm} classes call them.
 * Nothing of FlashInfer is shipped here.
 */
@NullMarked
package io.moe4j.backend.flashinfer;

import org.jspecify.annotations.NullMarked;
