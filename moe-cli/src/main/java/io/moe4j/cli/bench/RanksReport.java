package io.moe4j.cli.bench;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.cli.json.Json;
import java.util.List;

/**
 * What {@link RanksBench} measured, as Markdown and as JSON.
 *
 * @param layout of the ranks
 * @param exchange how rows and sums move, as rank 0's layer says it
 * @param rows cases
 */
public record RanksReport(RanksLayout layout, String exchange, List<RanksBench.Row> rows) {
  /** Copies the rows. */
  public RanksReport {
    rows = List.copyOf(rows);
  }

  /** {@return a Markdown page} */
  public String markdown() {
    boolean replicated = layout.replicated();
    StringBuilder s = new StringBuilder();
    s.append("A layer shared by ").append(layout.ranks()).append(" GPUs (").append(layout);
    s.append("), bf16, recorded; ");
    s.append(replicated ? "T tokens, the same on every rank" : "T of all ranks together");
    s.append(", microseconds. Empty: of tokens without experts. ");
    s.append(replicated ? "All-reduce" : "Gather and scatter").append(": NCCL's alone. ");
    s.append("Limit: the factor that the routing allows, by experts with rows (few tokens) and by");
    s.append(" rows (many).\n\n");
    s.append(exchange).append("\n\n");
    s.append("| shape | T | adapters | layout | one GPU | all | factor | limit | empty |");
    s.append(replicated ? " all-reduce |\n" : " gather | scatter |\n");
    s.append("|---|---|---|---|---|---|---|---|---|---|").append(replicated ? "\n" : "---|\n");
    for (RanksBench.Row r : rows) {
      s.append(
          String.format(
              ROOT,
              "| %s | %d | %s | %s | %.1f | %.1f | %.2fx | %.2fx %.2fx | %.1f |",
              r.shape(),
              r.tokens(),
              r.lora().adapters() == 0
                  ? ""
                  : "rank " + r.lora().rank() + " x " + r.lora().adapters(),
              layout,
              r.alone(),
              r.together(),
              r.factor(),
              r.expertsLimit(),
              r.rowsLimit(),
              r.empty()));
      s.append(
          replicated
              ? String.format(ROOT, " %.1f |%n", r.allReduce())
              : String.format(ROOT, " %.1f | %.1f |%n", r.gather(), r.scatter()));
    }
    return s.toString();
  }

  /** {@return the same as JSON} */
  public ObjectNode json() {
    ObjectNode root = Json.document("bench.ranks");
    root.put("ranks", layout.ranks());
    root.put("tensor_parallel", layout.tp());
    root.put("replicated_tokens", layout.replicated());
    root.put("exchange", exchange.replaceFirst("^exchange: ", ""));
    ArrayNode all = root.putArray("rows");
    for (RanksBench.Row r : rows) {
      ObjectNode n = all.addObject();
      n.put("shape", r.shape());
      n.put("layout", layout.toString());
      n.put("tokens", r.tokens());
      n.put("adapters", r.lora().adapters());
      n.put("rank", r.lora().rank());
      n.put("one_gpu_us", r.alone());
      n.put("all_us", r.together());
      n.put("factor", r.factor());
      n.put("limit_experts", r.expertsLimit());
      n.put("limit_rows", r.rowsLimit());
      n.put("empty_us", r.empty());
      if (layout.replicated()) {
        n.put("allreduce_us", r.allReduce());
      } else {
        n.put("gather_us", r.gather());
        n.put("scatter_us", r.scatter());
      }
    }
    return root;
  }
}
