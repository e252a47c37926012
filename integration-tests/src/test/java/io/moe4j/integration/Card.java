package io.moe4j.integration;

import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import java.util.concurrent.atomic.AtomicReference;

/**
 * The first card. Its context, and the kernels loaded in it, are kept until the process ends: the
 * last device that is closed would take them along, and to make them anew takes longer than most
 * cases do.
 */
final class Card {
  private static final AtomicReference<CudaDevice> KEPT = new AtomicReference<>();

  private Card() {}

  /** {@return the card, opened once more; the caller's to close} */
  static CudaDevice open() {
    CudaDeviceProvider provider = new CudaDeviceProvider();
    CudaDevice device = provider.open(0);
    if (KEPT.get() == null) {
      CudaDevice kept = provider.open(0);
      if (!KEPT.compareAndSet(null, kept)) {
        kept.close();
      }
    }
    return device;
  }
}
