// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.GetRunRequest;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunServiceGrpc;
import dev.famulus.v1.StreamRunRequest;
import dev.famulus.v1.WatchRunRequest;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * The events of one run in order, each once, over as many streams as it takes.
 *
 * <p>Iterate over it within try-with-resources: nothing is called before, and {@link #close}
 * cancels the open call and the tools that still run. Iterating ends after the last event of the
 * run; it throws {@link FamulusException} where the run cannot be followed any more, and with
 * CANCELLED where its thread was interrupted or the stream closed meanwhile. One thread iterates;
 * any may close.
 */
public final class RunStream implements Iterable<RunEvent>, AutoCloseable {
  private static final Duration LAST_WORD = Duration.ofSeconds(1); // for the server to end a stream

  private final Connection connection;
  private final RepeatedCalls calls;
  private final Following following;
  private final RetryPolicy policy;
  private final ToolRounds tools; // null where calls are not to be answered
  private final boolean cancelOnExit;
  private final Events events = new Events();
  private final Deque<RunEvent> pending = new ArrayDeque<>();
  private final CountDownLatch left = new CountDownLatch(1);
  private volatile EventCall call;
  private volatile FamulusException toolFailure;
  private FamulusException failure;
  private boolean entered;

  RunStream(Connection connection, Following following, RetryPolicy policy, StreamOptions options) {
    this.connection = connection;
    this.following = following;
    this.policy = policy;
    this.calls = new RepeatedCalls(connection, policy);
    this.cancelOnExit = options.cancelOnExit();
    this.tools =
        options
            .tools()
            .map(handlers -> new Toolbox(handlers, options.toolTimeout(), connection.workers()))
            .map(toolbox -> new ToolRounds(toolbox, calls, connection.workers(), this::toolsFailed))
            .orElse(null);
  }

  /**
   * The run as of the event that the iteration gave last. For the thread that iterates.
   *
   * @return the same object each time
   */
  public RunView view() {
    return following.view();
  }

  /**
   * The last event that the iteration gave: {@code afterSequence} with which to go on later, from
   * another process too.
   *
   * @return its sequence
   */
  public long lastSequence() {
    return following.lastSequence();
  }

  /**
   * The events. {@code hasNext} waits for one.
   *
   * @return the same iterator each time: a second loop goes on where the first one stopped
   */
  @Override
  public Iterator<RunEvent> iterator() {
    return events;
  }

  /**
   * Leaves the stream: the call is cancelled, outputs of tools that still run are dropped. The run
   * goes on, unless the stream was opened with {@link StreamOptions#withCancelOnExit}: then it is
   * cancelled, as well as that can be done within 5 seconds. Does nothing when repeated.
   */
  @Override
  public void close() {
    if (left.getCount() == 0) {
      return;
    }
    left.countDown();
    wake();
    hangUp();
    if (tools != null) {
      tools.stop();
    }
    if (cancelOnExit && following.mayGoOn()) {
      new RunCancellation(calls, connection.workers()).cancel(this::knownRun);
    }
  }

  private final class Events implements Iterator<RunEvent> {
    @Override
    public boolean hasNext() {
      if (failure != null) {
        throw failure;
      }
      try {
        return arrive();
      } catch (InterruptedException interrupted) {
        failure = FamulusException.interrupted(interrupted);
      } catch (FamulusException error) {
        failure = error;
      }
      hangUp();
      throw failure;
    }

    @Override
    public RunEvent next() {
      if (!hasNext()) {
        throw new NoSuchElementException("the run has ended");
      }
      RunEvent event = pending.remove();
      take(event);
      return event;
    }
  }

  /** Waits until the next event is the first of those pending; false where there will be none. */
  private boolean arrive() throws InterruptedException {
    enter();
    while (!following.finished()) {
      if (toolFailure != null) {
        throw toolFailure;
      }
      if (left.getCount() == 0) {
        throw new FamulusException(Status.Code.CANCELLED, "the stream was closed", null);
      }
      try {
        if (pending.isEmpty()) {
          read();
        } else if (!following.isNew(pending.element())) {
          pending.remove();
        } else if (pending.element().getEventCase() == RunEvent.EventCase.EVENT_NOT_SET) {
          take(pending.remove()); // a kind of a newer version
        } else {
          return true;
        }
      } catch (FamulusException error) {
        hangUp();
        pending.clear();
        long wait = following.lost(error);
        if (connection.isClosed()) {
          throw error;
        }
        left.await(wait, TimeUnit.NANOSECONDS);
      }
    }
    leave();
    return false;
  }

  private void enter() throws InterruptedException {
    if (entered) {
      return;
    }
    entered = true;
    if (tools != null && lastSequence() > 0) {
      // The event that asked for outputs may be among those seen before.
      following.joining();
      Run run = lookUp(calls, following.view().runId());
      following.view().name(run.getId());
      tools.answer(OpenCalls.of(run), () -> lookUp(calls, run.getId()));
    }
  }

  /** Reads one response, on a new call where none is open. */
  private void read() throws InterruptedException {
    EventCall open = call; // whoever closes the stream may take it away
    if (open == null) {
      following.joining();
      call = join();
      return; // to look first whether we are still wanted
    }
    EventCall.Arrival arrival = open.next(policy.silence());
    if (arrival == null) {
      throw new FamulusException(
          Status.Code.UNAVAILABLE,
          "nothing came for " + Seconds.text(policy.silence()) + " seconds",
          null);
    }
    if (arrival instanceof EventCall.Batch batch) {
      following.heard();
      pending.addAll(batch.events());
    } else if (arrival instanceof EventCall.End end) {
      if (end.error() != null) {
        throw end.error();
      }
      Run run = lookUp(calls, following.view().runId());
      following.view().name(run.getId());
      following.ended(run);
    }
  }

  private EventCall join() {
    // By its id as soon as that is known: a request id is forgotten after a day, and would start
    // another run.
    String runId = following.view().runId();
    if (runId.isEmpty()) {
      return EventCall.stream(
          connection.channel(),
          StreamRunRequest.newBuilder()
              .setCreate(following.create())
              .setAfterSequence(lastSequence())
              .build());
    }
    return EventCall.watch(
        connection.channel(),
        WatchRunRequest.newBuilder().setRunId(runId).setAfterSequence(lastSequence()).build());
  }

  private void take(RunEvent event) {
    following.take(event);
    if (tools != null) {
      String runId = following.view().runId();
      tools.answer(OpenCalls.of(event), () -> lookUp(calls, runId));
    }
  }

  /** The run as it is now. CreateRun shares its request ids with StreamRun. */
  private Run lookUp(RepeatedCalls with, String runId) throws InterruptedException {
    if (runId.isEmpty()) {
      return with.send(RunServiceGrpc.getCreateRunMethod(), following.create()).getRun();
    }
    GetRunRequest request = GetRunRequest.newBuilder().setRunId(runId).build();
    return with.send(RunServiceGrpc.getGetRunMethod(), request).getRun();
  }

  /** The id of the run; asks for it where no event brought it. */
  private String knownRun(RepeatedCalls with) throws InterruptedException {
    String runId = following.view().runId();
    return runId.isEmpty() ? lookUp(with, runId).getId() : runId;
  }

  /** The run has ended: nothing is to be answered any more, and the server ends the call. */
  private void leave() throws InterruptedException {
    if (tools != null) {
      tools.stop();
    }
    EventCall open = call;
    if (open != null) {
      open.drain(LAST_WORD);
    }
    hangUp();
  }

  private void hangUp() {
    EventCall open = call;
    if (open != null) {
      open.cancel();
      call = null;
    }
  }

  private void wake() {
    EventCall open = call;
    if (open != null) {
      open.wake();
    }
  }

  private void toolsFailed(Throwable error) {
    toolFailure = FamulusException.from(error);
    wake();
  }
}
