// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import com.google.common.util.concurrent.ListenableFuture;
import io.grpc.CallOptions;
import io.grpc.MethodDescriptor;
import io.grpc.stub.ClientCalls;
import java.time.Duration;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;

/** Unary calls that are safe to repeat, repeated while the service cannot be reached. */
final class RepeatedCalls {
  private final Connection connection;
  private final RetryPolicy policy;
  private final CallOptions options;

  RepeatedCalls(Connection connection, RetryPolicy policy) {
    this(connection, policy, CallOptions.DEFAULT);
  }

  private RepeatedCalls(Connection connection, RetryPolicy policy, CallOptions options) {
    this.connection = connection;
    this.policy = policy;
    this.options = options;
  }

  /** The same calls, which give up after this time. */
  RepeatedCalls within(Duration limit) {
    CallOptions limited = options.withDeadlineAfter(limit.toNanos(), TimeUnit.NANOSECONDS);
    return new RepeatedCalls(connection, policy.withGiveUpAfter(limit), limited);
  }

  /** Calls until there is an answer. Interrupting the thread cancels the call. */
  <Q, R> R send(MethodDescriptor<Q, R> method, Q request) throws InterruptedException {
    Outage outage = new Outage(policy);
    while (true) {
      try {
        return once(method, request, options);
      } catch (FamulusException error) {
        pause(error, outage.delay(error));
      }
    }
  }

  /**
   * The same for a method that waits: each attempt has a deadline, and to run into it is no
   * failure.
   */
  <Q, R> R await(MethodDescriptor<Q, R> method, Q request) throws InterruptedException {
    Outage outage = new Outage(policy);
    while (true) {
      long deadline = policy.silence().toNanos();
      try {
        return once(method, request, options.withDeadlineAfter(deadline, TimeUnit.NANOSECONDS));
      } catch (FamulusException error) {
        pause(error, outage.delayOfWait(error));
      }
    }
  }

  private void pause(FamulusException error, long nanos) throws InterruptedException {
    if (connection.isClosed()) {
      throw error;
    }
    TimeUnit.NANOSECONDS.sleep(nanos);
  }

  private <Q, R> R once(MethodDescriptor<Q, R> method, Q request, CallOptions with)
      throws InterruptedException {
    ListenableFuture<R> answer =
        ClientCalls.futureUnaryCall(connection.channel().newCall(method, with), request);
    try {
      return answer.get();
    } catch (ExecutionException failed) {
      throw FamulusException.from(failed.getCause());
    } catch (InterruptedException interrupted) {
      answer.cancel(true);
      throw interrupted;
    }
  }
}
