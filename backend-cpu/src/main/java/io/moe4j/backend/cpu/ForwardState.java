package io.moe4j.backend.cpu;

import java.lang.foreign.MemorySegment;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * What the parts of one {@link MlpForward} share: the call's workspace, the chunk of tokens at hand
 * and which of them goes where. Reused from call to call.
 */
final class ForwardState {
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);
  private static final MemberScratch[] NO_SCRATCH = {};

  final MlpSpec mlp;
  final TokenPlan plan;

  /** Which sorted positions stand in panels. */
  final PanelPlan panels;

  /** Tokens that share one pass over weights: more where there are registers for their sums. */
  private final int groupLimit;

  private MemorySegment ws = NONE;
  private @Nullable MlpLayout layout;
  private MemberScratch[] scratch = NO_SCRATCH;
  private int topK;

  ForwardState(MlpSpec mlp) {
    this.mlp = mlp;
    plan = new TokenPlan(mlp.weights().count(), mlp.maxLoras());
    panels = PanelPlan.of(mlp.kernels());
    groupLimit = mlp.kernels().dotTokens();
  }

  void begin(MlpCall call, MlpLayout where, MemorySegment workspace) {
    ws = workspace;
    layout = where;
    topK = call.topK();
    scratch = MemberScratch.take(mlp.team().size());
  }

  /** Lets go of everything the caller owns. */
  void clear() {
    if (scratch.length > 0) {
      MemberScratch.give(scratch);
      scratch = NO_SCRATCH;
    }
    ws = NONE;
  }

  /** {@return a member's own arrays} */
  MemberScratch scratch(int member) {
    return scratch[member];
  }

  /** {@return the call's workspace} */
  MemorySegment workspace() {
    return ws;
  }

  /** {@return where things stand in it} */
  MlpLayout where() {
    return Objects.requireNonNull(layout);
  }

  /** {@return where the input of a sorted position stands} */
  long xRow(int position) {
    MlpLayout l = where();
    int pair = plan.pair[position];
    return l.x() + (mlp.weightOnInput() ? pair : pair / topK) * l.xStride();
  }

  /** {@return where a sorted position's activations stand, if it is in no panel} */
  long actRow(int position) {
    MlpLayout l = where();
    return l.act() + position * l.actStride();
  }

  /** {@return where a panel's activations begin, {@code [intermediate, width]}} */
  long actPanel(int panel) {
    return where().actPanels() + 4L * panels.panelLane[panel] * mlp.weights().intermediate;
  }

  /** {@return how many of the tokens left go together: groups as even as can be} */
  int groupOf(int left) {
    return Math.ceilDiv(left, Math.ceilDiv(left, groupLimit));
  }
}
