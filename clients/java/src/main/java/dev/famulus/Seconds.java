// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import java.math.BigDecimal;
import java.time.Duration;

/** Durations in sentences for people. */
final class Seconds {
  private Seconds() {}

  /** The seconds as short as they can be written: {@code 0.2}, {@code 60}. */
  static String text(Duration duration) {
    return BigDecimal.valueOf(duration.toNanos(), 9).stripTrailingZeros().toPlainString();
  }
}
