// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.CancelRunRequest;
import dev.famulus.v1.RunServiceGrpc;
import java.time.Duration;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Cancels a run as well as that can be done in 5 seconds. */
final class RunCancellation {
  private static final Duration LIMIT = Duration.ofSeconds(5);

  /** Finds out which run it is. */
  interface Lookup {
    String runId(RepeatedCalls calls) throws InterruptedException;
  }

  private final RepeatedCalls calls;
  private final ExecutorService threads;

  RunCancellation(RepeatedCalls calls, ExecutorService threads) {
    this.calls = calls.within(LIMIT);
    this.threads = threads;
  }

  /**
   * Calls in another thread: this one may be interrupted, and the run is to be cancelled all the
   * same.
   */
  void cancel(Lookup lookup) {
    try {
      awaitUninterruptibly(
          threads.submit(
              () -> {
                String runId = lookup.runId(calls);
                CancelRunRequest request = CancelRunRequest.newBuilder().setRunId(runId).build();
                return calls.send(RunServiceGrpc.getCancelRunMethod(), request);
              }));
    } catch (ExecutionException | TimeoutException | RejectedExecutionException unreachable) {
      // The run ends at its own expire_time at the latest.
    }
  }

  private static void awaitUninterruptibly(Future<?> work)
      throws ExecutionException, TimeoutException {
    long deadline = System.nanoTime() + LIMIT.toNanos();
    boolean interrupted = false;
    try {
      while (true) {
        try {
          work.get(deadline - System.nanoTime(), TimeUnit.NANOSECONDS);
          return;
        } catch (InterruptedException again) {
          interrupted = true;
        }
      }
    } finally {
      if (interrupted) {
        Thread.currentThread().interrupt();
      }
    }
  }
}
