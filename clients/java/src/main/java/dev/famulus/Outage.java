// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import io.grpc.Status;
import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.function.DoubleSupplier;
import java.util.function.LongSupplier;

/** Counts failures in a row, for one call or stream. Waits are in nanoseconds. */
final class Outage {
  private final RetryPolicy policy;
  private final LongSupplier clock;
  private final DoubleSupplier random;
  private boolean lasting;
  private long since;
  private double backoff;

  Outage(RetryPolicy policy) {
    this(policy, System::nanoTime, () -> ThreadLocalRandom.current().nextDouble());
  }

  /**
   * {@code clock} is in nanoseconds and never goes back; {@code random} gives numbers from 0 to 1.
   */
  Outage(RetryPolicy policy, LongSupplier clock, DoubleSupplier random) {
    this.policy = policy;
    this.clock = clock;
    this.random = random;
    this.backoff = nanos(policy.initialDelay());
  }

  /** There was progress: the next failure is a first one. */
  void over() {
    lasting = false;
    backoff = nanos(policy.initialDelay());
  }

  /** The wait before the next attempt. Throws {@code error} where there must be none. */
  long delay(FamulusException error) {
    if (!error.isTransient()) {
      throw error;
    }
    long now = clock.getAsLong();
    if (!lasting) {
      lasting = true;
      since = now;
    }
    double spread = policy.jitter() * (2 * random.getAsDouble() - 1);
    double told = error.retryAfter().map(Outage::nanos).orElse(0.0);
    // Never earlier than told; a little later, or all clients of a stopped replica would come at
    // once.
    double delay =
        told > 0 ? Math.max(told, backoff) * (1 + Math.abs(spread)) : backoff * (1 + spread);
    if (now - since + delay > nanos(policy.giveUpAfter())) {
      throw error;
    }
    backoff = Math.min(backoff * policy.multiplier(), nanos(policy.maxDelay()));
    return (long) delay;
  }

  /**
   * The same for a call that waits for something, where to run into the deadline of the call is no
   * failure.
   */
  long delayOfWait(FamulusException error) {
    if (error.code() != Status.Code.DEADLINE_EXCEEDED) {
      return delay(error);
    }
    over();
    return (long) backoff;
  }

  private static double nanos(Duration duration) {
    return duration.getSeconds() * 1e9 + duration.getNano();
  }
}
