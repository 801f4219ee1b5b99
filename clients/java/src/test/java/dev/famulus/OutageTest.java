// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

/** When to try again, on a clock of our own. */
final class OutageTest {
  private static final FamulusException DOWN =
      new FamulusException(Status.Code.UNAVAILABLE, "down", null);

  private long now;
  private double random = 0.5;
  private final Outage outage = new Outage(RetryPolicy.defaults(), () -> now, () -> random);

  @Test
  void waitsDoubleUpToFiveSecondsAndStartOverAfterProgress() {
    List<Long> waits = new ArrayList<>();
    for (int attempt = 0; attempt < 8; attempt++) {
      waits.add(milliseconds(DOWN));
    }
    assertEquals(List.of(100L, 200L, 400L, 800L, 1_600L, 3_200L, 5_000L, 5_000L), waits);
    outage.over();
    assertEquals(100, milliseconds(DOWN));
  }

  @Test
  void waitsAreSpreadByHalf() {
    random = 0;
    assertEquals(50, milliseconds(DOWN));
    random = 1;
    assertEquals(300, milliseconds(DOWN));
  }

  @Test
  void whereTheServiceNamesATimeTheWaitIsAtLeastThatLong() {
    FamulusException draining =
        FamulusException.from(
            ScriptedRuns.refusal(
                Status.Code.UNAVAILABLE, "bye", ScriptedRuns.retryAfter(Duration.ofSeconds(2))));
    random = 0;
    assertEquals(3_000, milliseconds(draining));
    random = 0.5;
    assertEquals(2_000, milliseconds(draining));
  }

  @Test
  void anOutageIsGivenUpAfterSixtySeconds() {
    milliseconds(DOWN);
    now = Duration.ofMillis(59_800).toNanos();
    milliseconds(DOWN);
    assertSame(DOWN, assertThrows(FamulusException.class, () -> outage.delay(DOWN)));
  }

  @Test
  void aDeadlineIsNoFailureOfAWait() {
    FamulusException late = new FamulusException(Status.Code.DEADLINE_EXCEEDED, "late", null);
    outage.delayOfWait(DOWN);
    now = Duration.ofHours(1).toNanos();
    assertEquals(100, outage.delayOfWait(late) / 1_000_000);
    assertEquals(100, outage.delayOfWait(DOWN) / 1_000_000);
    assertThrows(FamulusException.class, () -> outage.delay(late));
  }

  @Test
  void policiesThatMakeNoSenseAreRefused() {
    RetryPolicy defaults = RetryPolicy.defaults();
    Duration negative = Duration.ofMillis(-1);
    assertThrows(IllegalArgumentException.class, () -> defaults.withGiveUpAfter(negative));
    assertThrows(IllegalArgumentException.class, () -> defaults.withSilence(Duration.ZERO));
    assertThrows(
        IllegalArgumentException.class,
        () ->
            new RetryPolicy(
                Duration.ZERO, 0.5, Duration.ZERO, 0, Duration.ZERO, Duration.ofDays(1)));
  }

  private long milliseconds(FamulusException error) {
    return outage.delay(error) / 1_000_000;
  }
}
