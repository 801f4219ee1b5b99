// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/**
 * Connects again 0.1 to 2 seconds after a failure. gRPC for Java waits 1 to 120 seconds and has no
 * setting for it; it only lets itself be told to try at once.
 */
final class Reconnecting {
  private static final long FIRST = 100; // milliseconds
  private static final long LONGEST = 2_000;

  private final ManagedChannel channel;
  private final ScheduledExecutorService timer;
  private long wait = FIRST;

  Reconnecting(ManagedChannel channel, ScheduledExecutorService timer) {
    this.channel = channel;
    this.timer = timer;
  }

  /** Looks at the channel now, and again whenever it changes. */
  void watch() {
    ConnectivityState state = channel.getState(false);
    if (state == ConnectivityState.TRANSIENT_FAILURE) {
      later();
    } else if (state != ConnectivityState.SHUTDOWN) {
      if (state == ConnectivityState.READY) {
        wait = FIRST;
      }
      channel.notifyWhenStateChanged(state, this::watch);
    }
  }

  private void later() {
    try {
      timer.schedule(this::again, wait, TimeUnit.MILLISECONDS);
    } catch (RejectedExecutionException closed) {
      return; // so is the channel
    }
    wait = Math.min(2 * wait, LONGEST);
  }

  private void again() {
    channel.resetConnectBackoff();
    watch();
  }
}
