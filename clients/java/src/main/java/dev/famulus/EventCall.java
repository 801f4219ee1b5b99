// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunServiceGrpc;
import dev.famulus.v1.StreamRunRequest;
import dev.famulus.v1.StreamRunResponse;
import dev.famulus.v1.WatchRunRequest;
import dev.famulus.v1.WatchRunResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/**
 * One call that streams events, read with a time-out for each read: gRPC's blocking stubs have
 * none. Few responses are asked for in advance, so that a slow reader slows the server and not this
 * process's memory.
 */
final class EventCall {
  private static final int AHEAD = 2; // responses

  /** What can come of waiting for the call. */
  sealed interface Arrival permits Batch, End, Woken {}

  /** A response; without events it is a heartbeat. */
  record Batch(List<RunEvent> events) implements Arrival {}

  /** The call has ended; {@code error} is null where it ended OK. */
  record End(FamulusException error) implements Arrival {}

  /** Nothing came, but somebody wants the reader to look up. */
  record Woken() implements Arrival {}

  private final ClientCall<?, ?> call;
  private final BlockingQueue<Arrival> arrived = new LinkedBlockingQueue<>();

  private EventCall(ClientCall<?, ?> call) {
    this.call = call;
  }

  static EventCall stream(Channel channel, StreamRunRequest request) {
    return start(
        channel, RunServiceGrpc.getStreamRunMethod(), request, StreamRunResponse::getEventsList);
  }

  static EventCall watch(Channel channel, WatchRunRequest request) {
    return start(
        channel, RunServiceGrpc.getWatchRunMethod(), request, WatchRunResponse::getEventsList);
  }

  private static <Q, R> EventCall start(
      Channel channel,
      MethodDescriptor<Q, R> method,
      Q request,
      Function<R, List<RunEvent>> events) {
    ClientCall<Q, R> call = channel.newCall(method, CallOptions.DEFAULT);
    EventCall reader = new EventCall(call);
    call.start(
        new ClientCall.Listener<R>() {
          @Override
          public void onMessage(R response) {
            reader.arrived.add(new Batch(events.apply(response)));
          }

          @Override
          public void onClose(Status status, Metadata trailers) {
            reader.arrived.add(
                new End(
                    status.isOk()
                        ? null
                        : FamulusException.from(new StatusRuntimeException(status, trailers))));
          }
        },
        new Metadata());
    call.request(AHEAD);
    call.sendMessage(request);
    call.halfClose();
    return reader;
  }

  /** What comes next; null where nothing came in time. */
  Arrival next(Duration timeout) throws InterruptedException {
    Arrival arrival = arrived.poll(timeout.toNanos(), TimeUnit.NANOSECONDS);
    if (arrival instanceof Batch) {
      call.request(1);
    }
    return arrival;
  }

  /** Makes a reader who waits look up. */
  void wake() {
    arrived.add(new Woken());
  }

  void cancel() {
    call.cancel("the stream was left", null);
  }

  /**
   * Lets the server end the call, but not for longer than this: cancelled, it would count as failed
   * there.
   */
  void drain(Duration limit) throws InterruptedException {
    long deadline = System.nanoTime() + limit.toNanos();
    Arrival arrival;
    do {
      arrival = next(Duration.ofNanos(Math.max(0, deadline - System.nanoTime())));
    } while (arrival != null && !(arrival instanceof End));
  }
}
