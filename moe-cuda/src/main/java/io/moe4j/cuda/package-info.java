/**
 * NVIDIA devices for moe4j: what the GPU backends share. Two layers reach the driver: JCuda (JNI)
 * is the control plane (contexts, modules, allocation, capture), the generated bindings in {@code
 * io.moe4j.cuda.ffi} are the data plane (launches, graph launches, asynchronous copies).
 *
 * <p>The way through for a backend:
 *
 * <pre>
 *   KernelLibrary library = KernelLibrary.of(MyBackend.class, "backend-mine");   // the manifest only; touches no device
 *   KernelSpec spec = library.select(device.info(), "gemm", Map.of("BM", "64")); // pure
 *   Kernel kernel = device.kernel(library, spec);                                // module loaded once, closed with the device
 *   kernel.begin().pointer(x).pointer(y).i32(n).launch(stream, gridX, 1, 1);      // no allocation
 * </pre>
 *
 * Nothing here loads a native library before {@link io.moe4j.cuda.CudaDeviceProvider#probe} found
 * it; a machine without a driver gets a reason, never an error.
 */
@NullMarked
package io.moe4j.cuda;

import org.jspecify.annotations.NullMarked;
