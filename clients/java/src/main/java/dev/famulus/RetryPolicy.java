// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import java.time.Duration;

/**
 * How a client bears outages.
 *
 * <p>The wait before attempt n is {@code initialDelay * multiplier^(n-1)}, at most {@code
 * maxDelay}, made shorter or longer by up to {@code jitter}. Where the service says when to come
 * back, the wait is at least that long.
 *
 * @param initialDelay the first wait; 0.1 s by default
 * @param multiplier how much longer each wait is than the one before; at least 1; 2 by default
 * @param maxDelay the longest wait; 5 s by default
 * @param jitter a fraction, from 0 to 1; 0.5 by default
 * @param giveUpAfter how long an outage may last before its last error is thrown; 60 s by default
 * @param silence how long a stream may give nothing, not even a heartbeat (the service sends one
 *     after 15 s), until it counts as broken, and the deadline of one attempt to wait for a run; 45
 *     s by default
 */
public record RetryPolicy(
    Duration initialDelay,
    double multiplier,
    Duration maxDelay,
    double jitter,
    Duration giveUpAfter,
    Duration silence) {

  private static final RetryPolicy DEFAULTS =
      new RetryPolicy(
          Duration.ofMillis(100),
          2,
          Duration.ofSeconds(5),
          0.5,
          Duration.ofSeconds(60),
          Duration.ofSeconds(45));

  /** Refuses with IllegalArgumentException what makes no sense. */
  public RetryPolicy {
    if (initialDelay.isNegative() || maxDelay.isNegative() || giveUpAfter.isNegative()) {
      throw new IllegalArgumentException("times must not be negative");
    }
    if (silence.isNegative() || silence.isZero()) {
      throw new IllegalArgumentException("silence must be longer than nothing");
    }
    if (!(multiplier >= 1) || !(jitter >= 0 && jitter <= 1)) {
      throw new IllegalArgumentException("multiplier must be at least 1, jitter from 0 to 1");
    }
  }

  /**
   * The policy that clients have where none is given.
   *
   * @return the defaults
   */
  public static RetryPolicy defaults() {
    return DEFAULTS;
  }

  /**
   * The same policy with other waits.
   *
   * @param initial the first wait
   * @param max the longest wait
   * @return a new policy
   */
  public RetryPolicy withDelays(Duration initial, Duration max) {
    return new RetryPolicy(initial, multiplier, max, jitter, giveUpAfter, silence);
  }

  /**
   * The same policy with another patience.
   *
   * @param patience how long an outage may last
   * @return a new policy
   */
  public RetryPolicy withGiveUpAfter(Duration patience) {
    return new RetryPolicy(initialDelay, multiplier, maxDelay, jitter, patience, silence);
  }

  /**
   * The same policy with another limit of silence.
   *
   * @param limit how long a stream may give nothing
   * @return a new policy
   */
  public RetryPolicy withSilence(Duration limit) {
    return new RetryPolicy(initialDelay, multiplier, maxDelay, jitter, giveUpAfter, limit);
  }
}
