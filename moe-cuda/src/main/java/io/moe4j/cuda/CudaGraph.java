package io.moe4j.cuda;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.cuda.ffi.CudaDriver;
import java.util.List;
import java.util.concurrent.atomic.AtomicBoolean;
import jcuda.driver.CUgraph;
import jcuda.driver.CUgraphExec;
import jcuda.driver.CUstreamCaptureMode;
import jcuda.driver.JCudaDriver;

/**
 * Work recorded once and launched many times. What it reads and writes stays at the addresses of
 * the capture: to replay with other tokens, routings or adapters, change the contents of those
 * buffers. One launch at a time may be in flight.
 */
public final class CudaGraph implements Device.Graph {
  private final CudaContext context;
  private final CUgraphExec exec;
  private final List<StreamGuard> guards;
  private final AtomicBoolean closed = new AtomicBoolean();

  private CudaGraph(CudaContext context, CUgraphExec exec, List<StreamGuard> guards) {
    this.context = context;
    this.exec = exec;
    this.guards = guards;
  }

  /**
   * Records what {@code work} enqueues on {@code stream} (and on streams that wait for its events)
   * without running it. Kernels must have been loaded before: run the work once, eagerly.
   *
   * @param device the stream's device
   * @param stream a stream of our own or the caller's; not the legacy default stream
   * @param work must neither allocate, nor synchronise, nor read results
   * @return the graph, owned by the caller
   * @throws io.moe4j.api.DeviceException if the work did what a capture cannot hold
   */
  public static CudaGraph capture(CudaDevice device, DeviceStream stream, Runnable work) {
    CudaContext context = device.context();
    context.makeCurrent();
    // Thread-local: another thread may allocate meanwhile without ending this capture.
    Cu.check(
        JCudaDriver.cuStreamBeginCapture(
            CudaStream.jcuda(stream), CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
        "cuStreamBeginCapture",
        stream::toString);
    CUgraph graph = new CUgraph();
    boolean recorded = false;
    List<StreamGuard> recording;
    int ended;
    try {
      work.run();
      recorded = true;
    } finally {
      recording = context.guards().stream().filter(g -> g.endRecording(stream)).toList();
      context.makeCurrent();
      ended = JCudaDriver.cuStreamEndCapture(CudaStream.jcuda(stream), graph);
      if (!recorded && Handles.raw(graph) != 0) {
        JCudaDriver.cuGraphDestroy(graph);
      }
    }
    Cu.check(ended, "cuStreamEndCapture", () -> "the captured work synchronised or allocated");
    try {
      CUgraphExec exec = new CUgraphExec();
      Cu.check(JCudaDriver.cuGraphInstantiate(exec, graph, 0), "cuGraphInstantiate");
      return new CudaGraph(context, exec, recording);
    } finally {
      JCudaDriver.cuGraphDestroy(graph);
    }
  }

  @Override
  public void launch(DeviceStream stream) {
    // The driver does not check handles: it reads where a destroyed one pointed to.
    if (closed.get()) {
      throw new IllegalStateException("the graph of " + context.info().id() + " is closed");
    }
    int begun = 0;
    try {
      for (StreamGuard g : guards) {
        g.beforeLaunch(stream);
        begun++;
      }
      context.makeCurrent();
      Cu.check(
          CudaDriver.cuGraphLaunch(Handles.segment(exec), CudaStream.segment(stream)),
          "cuGraphLaunch");
    } catch (RuntimeException | Error e) {
      for (StreamGuard g : guards.subList(0, begun)) {
        g.launchFailed(stream, e);
      }
      throw e;
    }
    guards.forEach(g -> g.afterLaunch(stream));
  }

  @Override
  public void close() {
    if (closed.compareAndSet(false, true)) {
      context.makeCurrent();
      Cu.check(JCudaDriver.cuGraphExecDestroy(exec), "cuGraphExecDestroy");
    }
  }
}
