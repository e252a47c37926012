package io.moe4j.oracle;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.MoeLoraContext;
import java.util.Objects;

/**
 * A layer with scratch memory of its own, for an engine that brings its own streams: {@link
 * #forward} takes nothing from the device, never waits for it and can be captured in a graph. For
 * one thread and one stream at a time; a call on another stream may follow when the caller knows
 * that the work of the previous one has finished.
 */
public final class MoeSession implements AutoCloseable {
  private final MoeLayer layer;
  private final ScratchLayout layout;
  private final Scratch scratch;
  private DeviceStream last;
  private boolean closed;

  MoeSession(MoeLayer layer, ScratchLayout layout, DeviceStream first) {
    this.layer = layer;
    this.layout = layout;
    this.scratch = new Scratch(layer.device(), layout.bytes());
    this.last = first;
  }

  /** {@return the largest T that runs in one piece; larger ones run in several} */
  public int maxTokens() {
    return layout.capacity();
  }

  /**
   * {@link MoeLayer#forward(MoeForward)} on a stream of the caller's.
   *
   * @param request tensors in and out, alive until the stream has done the work
   * @param stream of the layer's device; open as long as the session is
   * @throws IllegalArgumentException naming the argument, what was given, what is accepted
   * @throws IllegalStateException if the session or its layer is closed
   */
  public synchronized void forward(MoeForward request, DeviceStream stream) {
    if (closed) {
      throw new IllegalStateException("the session is closed");
    }
    Objects.requireNonNull(stream, "stream");
    if (!stream.device().equals(layer.device().info().id())) {
      throw new IllegalArgumentException(
          "stream is of " + stream.device() + ", the layer of " + layer.device().info().id());
    }
    layer.run(request, layout, scratch, stream);
    last = stream;
  }

  /**
   * To be called before a graph that captured {@link #forward} is replayed with other adapters in
   * the slots than at the last call: the replay then reads them. Not needed for other tokens,
   * routings or assignments of the same adapters, whose buffers the graph reads anew anyway.
   *
   * @param context of the registry that the graph was captured with
   * @param stream of the replay; not while it captures
   * @throws IllegalStateException if the session or its layer is closed
   */
  public synchronized void refresh(MoeLoraContext context, DeviceStream stream) {
    if (closed) {
      throw new IllegalStateException("the session is closed");
    }
    layer.refresh(context, stream);
    last = stream;
  }

  /** Waits for the last stream, then gives the scratch memory back. Harmless when called twice. */
  @Override
  public synchronized void close() {
    if (!closed) {
      closed = true;
      layer.forget(this);
      try {
        last.synchronize();
      } finally {
        scratch.close(); // also where the work failed, like that of ranks whose group has ended
      }
    }
  }
}
