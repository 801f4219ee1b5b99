// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

/** A channel and the threads that belong to it. */
final class Connection implements AutoCloseable {
  private static final long LAST_WORD =
      1; // seconds that calls and threads have to end when the channel is closed

  private final ManagedChannel managed;
  private final Channel channel;
  private final ExecutorService workers = Executors.newCachedThreadPool(threads("famulus-worker"));
  private final ScheduledExecutorService timer;

  /** Takes over a channel; {@code token} is null where calls carry none. */
  Connection(ManagedChannel managed, BearerToken token) {
    this.managed = managed;
    this.channel =
        token == null ? managed : ClientInterceptors.intercept(managed, token.on(workers));
    this.timer = Executors.newSingleThreadScheduledExecutor(threads("famulus-reconnect"));
    new Reconnecting(managed, timer).watch();
  }

  /** What calls are made on. */
  Channel channel() {
    return channel;
  }

  /** Threads for tools and for what must not be interrupted; as many as are needed. */
  ExecutorService workers() {
    return workers;
  }

  /** Calls go nowhere any more: trying again is of no use. */
  boolean isClosed() {
    return managed.isShutdown();
  }

  /**
   * Cancels what is open. Handlers that do not react to being interrupted are left behind, in
   * daemon threads.
   */
  @Override
  public void close() {
    managed.shutdownNow();
    timer.shutdownNow();
    workers.shutdownNow();
    try {
      managed.awaitTermination(LAST_WORD, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  private static ThreadFactory threads(String name) {
    AtomicInteger number = new AtomicInteger();
    return work -> {
      Thread thread = new Thread(work, name + "-" + number.incrementAndGet());
      thread.setDaemon(true);
      return thread;
    };
  }
}
