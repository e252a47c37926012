package io.moe4j.cli;

import static java.util.Locale.ROOT;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.checkpoint.AdapterConfig;
import io.moe4j.checkpoint.AdapterReport;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import io.moe4j.checkpoint.AdapterReport.TargetEntry;
import io.moe4j.checkpoint.AdapterReport.TensorEntry;
import io.moe4j.cli.json.Json;
import java.io.PrintWriter;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;

/** What {@code moe inspect} tells of an adapter. */
final class AdapterText {
  private static final Pattern NUMBER = Pattern.compile("(?<=\\.)\\d+(?=\\.)");

  private AdapterText() {}

  /** {@return whose form it has, rank, scale and targets in one line} */
  static String words(AdapterConfig c) {
    boolean mlx = c.form() == AdapterConfig.Form.MLX;
    StringBuilder s = new StringBuilder(mlx ? "mlx-lm adapter, r=" : "PEFT adapter, r=");
    s.append(c.rank());
    s.append(mlx ? ", scale=" + number(c.alpha() / c.rank()) : ", lora_alpha=" + number(c.alpha()));
    s.append(c.rslora() ? ", rslora" : "");
    s.append(c.rankPattern().isEmpty() ? "" : ", rank_pattern " + c.rankPattern());
    s.append(c.alphaPattern().isEmpty() ? "" : ", alpha_pattern " + c.alphaPattern());
    s.append(c.targetModules().isEmpty() ? "" : ", target_modules " + c.targetModules());
    s.append(c.targetParameters().isEmpty() ? "" : ", target_parameters " + c.targetParameters());
    s.append(c.modulesToSave().isEmpty() ? "" : ", modules_to_save " + c.modulesToSave());
    s.append(c.variants().isEmpty() ? "" : ", " + String.join(", ", c.variants()));
    s.append(c.peftVersion().map(v -> ", written by PEFT " + v).orElse(""));
    s.append(c.baseModel().map(m -> ", for " + m).orElse(""));
    return Text.line(s.toString());
  }

  private static String number(double d) {
    return d == Math.rint(d) ? Long.toString((long) d) : Double.toString(d);
  }

  static void print(AdapterReport r, PrintWriter out) {
    Map<Disposition, Integer> counts = r.counts();
    out.println(Text.line(r.directory().toString()) + ": " + words(r.config()));
    out.println(
        "  "
            + r.tensors().size()
            + " tensors: "
            + counts.get(Disposition.APPLIED)
            + " applied, "
            + counts.get(Disposition.SKIPPED)
            + " skipped, "
            + counts.get(Disposition.REFUSED)
            + " refused; "
            + Text.bytes(r.bytes())
            + " once loaded");
    if (!r.targets().isEmpty()) {
      TextTable table =
          new TextTable(">layer", "target", ">rank", ">experts", ">scale", "A/B", ">memory");
      for (TargetEntry t : r.targets()) {
        table.row(
            t.layer(),
            t.target().name().toLowerCase(ROOT),
            t.rank(),
            t.experts() == 0 ? "-" : t.experts(),
            String.format(ROOT, "%.4g", t.scale()),
            t.dtypes(),
            Text.bytes(t.bytes()));
      }
      out.println();
      out.print(table.render("  "));
    }
    for (Disposition d : List.of(Disposition.APPLIED, Disposition.SKIPPED, Disposition.REFUSED)) {
      List<TensorEntry> of = r.tensors().stream().filter(t -> t.disposition() == d).toList();
      if (!of.isEmpty()) {
        out.println();
        out.println("  " + d.name().toLowerCase(ROOT) + ":");
        groups(of).forEach(line -> out.println("    " + line));
      }
    }
    r.notes().forEach(n -> out.println("  note: " + Text.line(n)));
    if (!r.accepted()) {
      out.println("  This adapter would be REFUSED: " + AdapterOptions.inOptions(r.advice()) + ".");
    }
  }

  /** Tensors that differ only in layer and expert numbers, and in nothing that is said of them. */
  private static List<String> groups(List<TensorEntry> entries) {
    Map<String, List<TensorEntry>> alike = new LinkedHashMap<>();
    for (TensorEntry t : entries) {
      String key =
          NUMBER.matcher(t.tensor()).replaceAll("*") + "\n" + t.described() + "\n" + t.reason();
      alike.computeIfAbsent(key, _ -> new ArrayList<>()).add(t);
    }
    List<String> lines = new ArrayList<>();
    alike.forEach((key, group) -> {
      TensorEntry first = group.getFirst();
      String name = group.size() == 1 ? first.tensor() : key.substring(0, key.indexOf('\n'));
      lines.add(
          Text.line(name)
              + " "
              + first.described()
              + (group.size() == 1 ? "" : " x" + group.size())
              + (first.reason().isEmpty()
                  ? ""
                  : ": " + Text.line(AdapterOptions.inOptions(first.reason()))));
    });
    return lines;
  }

  static ObjectNode config(AdapterConfig c) {
    ObjectNode n = Json.object();
    c.baseModel().ifPresent(m -> n.put("base_model", m));
    c.peftVersion().ifPresent(v -> n.put("peft_version", v));
    n.put("form", c.form().name().toLowerCase(ROOT));
    n.put("r", c.rank());
    if (c.form() == AdapterConfig.Form.MLX) {
      n.put("scale", c.alpha() / c.rank());
    } else {
      n.put("lora_alpha", c.alpha());
      n.put("use_rslora", c.rslora());
    }
    ObjectNode ranks = n.putObject("rank_pattern");
    c.rankPattern().forEach(ranks::put);
    ObjectNode alphas = n.putObject("alpha_pattern");
    c.alphaPattern().forEach(alphas::put);
    strings(n.putArray("target_modules"), c.targetModules());
    strings(n.putArray("target_parameters"), c.targetParameters());
    strings(n.putArray("modules_to_save"), c.modulesToSave());
    n.put("bias", c.bias());
    strings(n.putArray("variants"), c.variants());
    return n;
  }

  static ObjectNode json(AdapterReport r) {
    ObjectNode root = Json.document("inspect.adapter");
    root.put("kind", "adapter");
    root.put("name", r.name());
    root.put("directory", r.directory().toString());
    root.put("accepted", r.accepted());
    root.set("config", config(r.config()));
    ObjectNode counts = root.putObject("counts");
    r.counts().forEach((d, n) -> counts.put(d.name().toLowerCase(ROOT), n));
    ArrayNode tensors = root.putArray("tensors");
    for (TensorEntry t : r.tensors()) {
      ObjectNode n = tensors.addObject();
      n.put("name", t.tensor());
      n.put("described", t.described());
      n.put("disposition", t.disposition().name().toLowerCase(ROOT));
      t.layer().ifPresent(l -> n.put("layer", l));
      ArrayNode targets = n.putArray("targets");
      t.targets().stream().sorted().forEach(x -> targets.add(x.name().toLowerCase(ROOT)));
      n.put("reason", t.reason());
    }
    ArrayNode targets = root.putArray("targets");
    for (TargetEntry t : r.targets()) {
      ObjectNode n = targets.addObject();
      n.put("layer", t.layer());
      n.put("target", t.target().name().toLowerCase(ROOT));
      n.put("rank", t.rank());
      n.put("experts", t.experts());
      n.put("scale", t.scale());
      n.put("dtypes", t.dtypes());
      n.put("bytes", t.bytes());
    }
    root.put("bytes", r.bytes());
    strings(root.putArray("notes"), r.notes());
    return root;
  }

  private static void strings(ArrayNode array, List<String> values) {
    values.forEach(array::add);
  }
}
