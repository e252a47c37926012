/** The float64 truth: what a MoE block computes, written to be read and compared with. */
module io.moe4j.reference {
  requires transitive io.moe4j.api;
  requires static transitive org.jspecify;

  exports io.moe4j.reference;
}
