package io.moe4j.cli;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterPolicy;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.checkpoint.PeftAdapter;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** The example of README.md, compiled and run; {@link ReadmeTest} compares the text. */
final class ReadmeExample {
  private ReadmeExample() {}

  // <example>
  static void twoAdaptersInOneBatch(Path modelDir, Path sql, Path chat, Tensor in, Tensor out) {
    try (MoeCheckpoint model = MoeCheckpoint.open(modelDir)) { // mapped, nothing is copied
      Map<Integer, MoeConfig> configs = new TreeMap<>();
      for (int l : model.layers()) { // 8 adapters at a time, of rank 64 at most
        configs.put(l, model.config(l).toBuilder().lora(new LoraConfig(8, 64)).build());
      }
      int first = model.layers().getFirst();
      try (MoeLayer layer = MoeLayer.builder(configs.get(first), model.weights(first)).build();
          AdapterRegistry adapters = AdapterRegistry.builder(configs).build()) {
        System.out.println(layer.selection().explain()); // which backend, and why not the others
        adapters.load(PeftAdapter.load(sql, "sql", model, AdapterPolicy.DEFAULT).adapter());
        adapters.load(PeftAdapter.load(chat, "chat", model, AdapterPolicy.DEFAULT).adapter());
        List<String> perToken = List.of("sql", "chat", "", "sql"); // "" = base model
        try (AdapterBatch batch = adapters.batch(perToken)) { // [4, H] -> [4, H]
          layer.forward(MoeForward.of(in, out).withLora(batch.context(first)));
        }
      }
    }
  }
  // </example>
}
