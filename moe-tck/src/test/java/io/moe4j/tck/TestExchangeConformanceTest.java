package io.moe4j.tck;

import io.moe4j.api.spi.ExpertExchangeProvider;

class TestExchangeConformanceTest extends ExchangeConformanceTest {
  @Override
  protected ExpertExchangeProvider provider() {
    return TestExchange.provider(TestExchange::new);
  }
}
