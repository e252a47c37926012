/** A backend by somebody else. */
module com.example.plain {
  requires io.moe4j.api;

  provides io.moe4j.api.spi.ExpertsBackend with
      com.example.plain.PlainBackend;
}
