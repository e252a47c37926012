package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.ffi.NativeBlock;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Objects;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.jspecify.annotations.Nullable;

/**
 * One linear map that every token passes, {@code y = W x + b}, with LoRA: router, latent
 * projections, the shared expert's gate. Thread-safe like {@link GroupedMlp}.
 */
final class DenseLayer {
  private static final int ROW_TILE = MlpLayout.ROW_TILE;
  private static final int TOKEN_TILE = MlpLayout.TOKEN_TILE;
  private static final int TOKENS_PER_TILE = 8;

  /** Tokens and outputs of a call into C at most, and at least where there are more. */
  private static final int LARGEST_C_TILE = 32;

  private static final int SMALLEST_C_TILE = 4;

  /** Calls into C for each thread, so that the last ones end together. */
  private static final int C_TILES_PER_THREAD = 4;

  private static final MemberScratch[] NO_SCRATCH = {};
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);

  private final Kernels kernels;
  private final @Nullable NativeBlock c;
  private final ThreadTeam team;
  private final TypedKernels typed;
  private final Rows rows;

  /** Those bytes of the weights that are read. */
  private final MemorySegment weights;

  private final @Nullable MemorySegment bias;
  private final @Nullable LoraTarget target;
  private final int maxLoras;
  private final int maxRank;
  private final ConcurrentLinkedQueue<Pass> pool = new ConcurrentLinkedQueue<>();

  DenseLayer(
      Tensor weight,
      @Nullable Tensor bias,
      Arena arena,
      BlockKernels with,
      @Nullable LoraTarget target,
      int maxLoras,
      int maxRank) {
    kernels = with.java();
    c = with.c();
    team = with.team();
    rows = Rows.of(FileMemory.copied(weight), arena);
    typed = kernels.forType(Rows.requireFloat("weight", weight), rows.segment());
    long last = Math.max(0, rows.rows() - 1) * rows.stride();
    weights = rows.segment().asSlice(rows.offset(), last + rows.type().byteSize(rows.cols()));
    this.bias = bias == null ? null : Rows.vector(bias, arena);
    if (this.bias != null) {
      Objects.checkFromIndexSize(0, 4L * out(), this.bias.byteSize());
    }
    this.target = target;
    this.maxLoras = target == null ? 0 : maxLoras;
    this.maxRank = target == null ? 0 : maxRank;
  }

  int in() {
    return rows.cols();
  }

  int out() {
    return rows.rows();
  }

  private long xStride() {
    return Workspace.align(4L * in());
  }

  private long shrunkStride() {
    return Workspace.align(4L * maxRank);
  }

  long workspaceBytes(int tokens) {
    return tokens * (xStride() + shrunkStride());
  }

  /**
   * Runs it: F32 {@code [T, out]} goes to {@code yMemory} from {@code yOffset} on.
   *
   * @param x {@code [T, in]} of {@code type}
   */
  void run(
      MemorySegment x,
      DType type,
      int tokens,
      @Nullable MoeLoraContext lora,
      MemorySegment yMemory,
      long yOffset,
      MemorySegment workspace,
      long workspaceOffset) {
    if (tokens == 0) {
      return;
    }
    Pass p = pool.poll();
    if (p == null) {
      p = new Pass();
    }
    try {
      p.run(x, type, tokens, lora, yMemory, yOffset, workspace, workspaceOffset);
    } finally {
      p.clear();
      pool.add(p);
    }
  }

  private final class Pass {
    private final TokenPlan plan = new TokenPlan(1, maxLoras);
    private final boolean[] live = new boolean[maxLoras];
    private final LoraView[] views = new LoraView[maxLoras];
    private final ThreadTeam.Region prepare = this::prepareTile;
    private final ThreadTeam.Region product = this::productTile;
    private final ThreadTeam.Region productInC = this::tileInC;
    private final ThreadTeam.Region delta = this::deltaTile;
    private int tokensOfTile;
    private int outsOfTile;
    private MemorySegment x = NONE;
    private DType type = DType.F32;
    private int tokens;
    private MemorySegment y = NONE;
    private long y0;

    /** Where C writes: y, or what stands in for it. */
    private MemorySegment into = NONE;

    private MemorySegment ws = NONE;
    private long x0;
    private long shrunk0;
    private MemberScratch[] scratch = NO_SCRATCH;

    Pass() {
      for (int i = 0; i < views.length; i++) {
        views[i] = new LoraView(kernels);
      }
    }

    void run(
        MemorySegment x,
        DType type,
        int tokens,
        @Nullable MoeLoraContext lora,
        MemorySegment y,
        long yOffset,
        MemorySegment ws,
        long wsOffset) {
      this.x = x;
      this.type = type;
      this.tokens = tokens;
      this.y = y;
      y0 = yOffset;
      this.ws = ws;
      x0 = wsOffset;
      shrunk0 = x0 + tokens * xStride();
      scratch = MemberScratch.take(team.size());
      MoeLoraContext adapters = null;
      if (lora != null && target != null && lora.hasLora() && look(lora, target)) {
        adapters = lora;
      }
      if (c == null || adapters != null) {
        team.run(prepare, Math.ceilDiv(tokens, TOKENS_PER_TILE));
      }
      if (c == null) {
        team.run(product, Math.ceilDiv(out(), ROW_TILE) * Math.ceilDiv(tokens, TOKEN_TILE));
      } else {
        runInC();
      }
      if (adapters != null) {
        plan.build(null, null, 0, adapters.tokenLoraMapping().segment(), live, 0, tokens, 1);
        team.run(delta, plan.segments);
      }
    }

    /** Tiles as large as they may be while there are enough of them; bits depend on neither. */
    private void runInC() {
      x = x.asSlice(0, type.byteSize((long) tokens * in()));
      MemorySegment to = y.asSlice(y0, 4L * tokens * out());
      if (x.isMapped()) {
        throw new IllegalStateException("kernels in C are not given memory of a file");
      }
      int t = Math.min(LARGEST_C_TILE, tokens);
      int n = LARGEST_C_TILE;
      int enough = C_TILES_PER_THREAD * team.size();
      while (Math.ceilDiv(tokens, t) * Math.ceilDiv(out(), n) < enough
          && Math.max(t, n) > SMALLEST_C_TILE) {
        if (n >= t) {
          n /= 2;
        } else {
          t /= 2;
        }
      }
      tokensOfTile = t;
      outsOfTile = n;
      into = FileMemory.standIn(to);
      team.run(productInC, Math.ceilDiv(tokens, t) * Math.ceilDiv(out(), n));
      FileMemory.writeBack(into, to);
    }

    private void tileInC(int index, int member) {
      int tilesOfOuts = Math.ceilDiv(out(), outsOfTile);
      int row0 = index % tilesOfOuts * outsOfTile;
      int n = Math.min(outsOfTile, out() - row0);
      int from = index / tilesOfOuts * tokensOfTile;
      int to = Math.min(tokens, from + tokensOfTile);
      Objects.checkFromToIndex(from, to, tokens);
      Objects.checkFromIndexSize(row0, n, out());
      Objects.requireNonNull(c)
          .dense(
              x,
              type,
              weights,
              rows.type(),
              rows.stride(),
              bias,
              into,
              4L * out(),
              in(),
              from,
              to,
              row0,
              n);
    }

    void clear() {
      into = NONE;
      x = NONE;
      y = NONE;
      ws = NONE;
      if (scratch.length > 0) {
        MemberScratch.give(scratch);
        scratch = NO_SCRATCH;
      }
      for (LoraView v : views) {
        v.set(null);
      }
    }

    private boolean look(MoeLoraContext lora, LoraTarget which) {
      boolean any = false;
      for (int s = 0; s < views.length; s++) {
        LoraLayer layer = s < lora.maxLoras() ? lora.slot(s) : null;
        views[s].set(layer == null ? null : layer.get(which));
        live[s] = views[s].rank() > 0;
        any |= live[s];
      }
      return any;
    }

    private long xRow(int t) {
      return x0 + t * xStride();
    }

    private void prepareTile(int index, int member) {
      int end = Math.min(tokens, (index + 1) * TOKENS_PER_TILE);
      long rowBytes = (long) in() * (type.bits() / 8);
      for (int t = index * TOKENS_PER_TILE; t < end; t++) {
        kernels.forType(type, x).widen(x, t * rowBytes, ws, xRow(t), in(), 1f);
      }
    }

    private void productTile(int index, int member) {
      int rowTiles = Math.ceilDiv(out(), ROW_TILE);
      int row0 = index % rowTiles * ROW_TILE;
      int n = Math.min(ROW_TILE, out() - row0);
      int from = index / rowTiles * TOKEN_TILE;
      int to = Math.min(tokens, from + TOKEN_TILE);
      long stride = 4L * out();
      MemberScratch scratch = this.scratch[member];
      for (int t = from, m; t < to; t += m) {
        m = Math.min(kernels.dotTokens(), to - t);
        for (int j = 0; j < m; j++) {
          scratch.at[j] = xRow(t + j);
        }
        typed.dot(
            rows.segment(),
            rows.offset() + row0 * rows.stride(),
            rows.stride(),
            n,
            ws,
            scratch.at,
            m,
            in(),
            y,
            y0 + t * stride + 4L * row0,
            stride,
            scratch.dots);
      }
      if (bias != null) {
        for (int t = from; t < to; t++) {
          kernels.forType(DType.F32).axpy(1f, bias, 4L * row0, y, y0 + t * stride + 4L * row0, n);
        }
      }
    }

    /** One segment of tokens with one adapter; tokens of a segment need not be neighbours. */
    private void deltaTile(int segment, int member) {
      LoraView v = views[plan.segmentSlot[segment]];
      MemberScratch scratch = this.scratch[member];
      int from = plan.segmentStart[segment];
      int n = plan.segmentEnd[segment] - from;
      long s = shrunk0 + from * shrunkStride();
      for (int i = 0, m; i < n; i += m) {
        m = Math.min(kernels.dotTokens(), n - i);
        for (int j = 0; j < m; j++) {
          scratch.at[j] = xRow(plan.pair[from + i + j]);
        }
        long to = s + i * shrunkStride();
        v.shrink(0, ws, scratch.at, m, ws, to, shrunkStride(), scratch.dots);
      }
      for (int j = 0; j < n; j++) {
        scratch.at[j] = y0 + 4L * plan.pair[from + j] * out();
      }
      v.expand(0, 0, v.outputs(), ws, s, shrunkStride(), n, y, scratch.at, true);
    }
  }
}
