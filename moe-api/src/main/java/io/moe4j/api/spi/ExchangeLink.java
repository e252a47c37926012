package io.moe4j.api.spi;

/**
 * What an exchange offers to experts of its own platform beyond this package, like to leave the sum
 * over k to it. Experts that know the class of a link may use it; all others write their output.
 *
 * <p>A link belongs to one {@link ExchangedRows}.
 *
 * @since 0.2.0
 */
public interface ExchangeLink {}
