package io.moe4j.oracle;

import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.tck.ExchangeConformanceTest;

class AllReduceExchangeConformanceTest extends ExchangeConformanceTest {
  @Override
  protected ExpertExchangeProvider provider() {
    return new Exchanges.AllReduce();
  }
}
