// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import com.google.protobuf.Message;
import dev.famulus.v1.RunEvent;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ServerCallStreamObserver;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** One stream that is served, and the ways in which streams go wrong. */
final class ScriptedStream {
  /** Serves a stream; when it returns, the stream ends OK. */
  interface Serving {
    void serve(ScriptedStream stream) throws InterruptedException;
  }

  final Message request;
  final long after;

  /** Counted down when the client has gone, or the stream has ended. */
  final CountDownLatch closed = new CountDownLatch(1);

  private final ScriptedRuns runs;
  private final ServerCallStreamObserver<?> call;
  private final Consumer<List<RunEvent>> responses;

  ScriptedStream(
      ScriptedRuns runs,
      Message request,
      long after,
      ServerCallStreamObserver<?> call,
      Consumer<List<RunEvent>> responses) {
    this.runs = runs;
    this.request = request;
    this.after = after;
    this.call = call;
    this.responses = responses;
    call.setOnCancelHandler(closed::countDown);
  }

  boolean cancelled() {
    return call.isCancelled();
  }

  void serve(Serving serving) {
    try {
      serving.serve(this);
      call.onCompleted();
    } catch (StatusRuntimeException planned) {
      if (!call.isCancelled()) {
        call.onError(planned);
      }
    } catch (InterruptedException stopped) {
      // the server closes
    } finally {
      closed.countDown();
    }
  }

  void send(RunEvent... events) {
    responses.accept(List.of(events));
  }

  /** Tells up to {@code most} of the events that follow a sequence. */
  private void tell(long from, long most) throws InterruptedException {
    RunEvent event;
    long told = 0;
    for (int position = 0; told < most && (event = runs.published(position)) != null; position++) {
      if (event.getSequence() > from) {
        send(event);
        told++;
      }
    }
  }

  void whole() throws InterruptedException {
    tell(after, Long.MAX_VALUE);
  }

  static Serving cutAfter(int count) {
    return cutAfter(count, Status.UNAVAILABLE.withDescription("cut").asRuntimeException());
  }

  static Serving cutAfter(int count, StatusRuntimeException error) {
    return stream -> {
      stream.tell(stream.after, count);
      throw error;
    };
  }

  /** Ends OK too early. */
  static Serving endsAfter(int count) {
    return stream -> stream.tell(stream.after, count);
  }

  static Serving silentAfter(int count) {
    return stream -> {
      stream.tell(stream.after, count);
      stream.closed.await();
    };
  }

  static Serving heartbeats(int count, Duration apart) {
    return stream -> {
      for (int beat = 0; beat < count; beat++) {
        stream.closed.await(apart.toMillis(), TimeUnit.MILLISECONDS);
        stream.send();
      }
      stream.whole();
    };
  }

  /** Tells this event, whatever the client asked for, and goes on after it. */
  static Serving tells(RunEvent event) {
    return stream -> {
      stream.send(event);
      stream.tell(event.getSequence(), Long.MAX_VALUE);
    };
  }

  static Serving without(long sequence) {
    return stream -> {
      RunEvent event;
      for (int position = 0; (event = stream.runs.published(position)) != null; position++) {
        if (event.getSequence() > stream.after && event.getSequence() != sequence) {
          stream.send(event);
        }
      }
    };
  }

  /** Starts at the first event, whatever the client has seen, and tells each twice. */
  static Serving repeatsAll() {
    return stream -> {
      RunEvent event;
      for (int position = 0; (event = stream.runs.published(position)) != null; position++) {
        stream.send(event, event);
      }
    };
  }

  static Serving inOneBatch() {
    return stream -> {
      List<RunEvent> events = new ArrayList<>();
      RunEvent event;
      for (int position = 0; (event = stream.runs.published(position)) != null; position++) {
        events.add(event);
      }
      stream.responses.accept(events);
    };
  }
}
