// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.CreateRunRequest;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import io.grpc.Status;
import java.util.UUID;

/**
 * One run, followed over any number of streams: the place in its log, and what to do when a stream
 * breaks. No I/O.
 */
final class Following {
  /** In a row, at the same place. */
  private static final int MOST_GAPS = 3;

  private final RunView view = new RunView();
  private final CreateRunRequest create;
  private final Outage outage;
  private int gaps;
  // Read by whoever closes the stream, too.
  private volatile long lastSequence;
  private volatile boolean finished;
  private volatile boolean asked;

  private Following(CreateRunRequest create, String runId, long afterSequence, Outage outage) {
    this.create = create;
    this.outage = outage;
    this.lastSequence = afterSequence;
    view.name(runId);
  }

  /** Starts a run, or joins the one that has its request id. */
  static Following starting(CreateRunRequest create, long afterSequence, Outage outage) {
    return new Following(repeatable(create), "", afterSequence, outage);
  }

  /** Watches a run that exists. */
  static Following watching(String runId, long afterSequence, Outage outage) {
    return new Following(CreateRunRequest.getDefaultInstance(), runId, afterSequence, outage);
  }

  /** The request, with a request id: without one, each attempt would start another run. */
  static CreateRunRequest repeatable(CreateRunRequest create) {
    return create.getRequestId().isEmpty()
        ? create.toBuilder().setRequestId(UUID.randomUUID().toString()).build()
        : create;
  }

  RunView view() {
    return view;
  }

  /** What starts the run, or finds it. */
  CreateRunRequest create() {
    return create;
  }

  long lastSequence() {
    return lastSequence;
  }

  boolean finished() {
    return finished;
  }

  /** The run is about to be asked for. */
  void joining() {
    asked = true;
  }

  /**
   * Whether there may be a run that goes on without us: it was asked for, and neither refused nor
   * seen to end.
   */
  boolean mayGoOn() {
    return asked && !finished;
  }

  /** Something came, if only a heartbeat: the outage has ended. */
  void heard() {
    outage.over();
  }

  /**
   * Whether an event was not seen before. Throws GapException where events before it are missing.
   */
  boolean isNew(RunEvent event) {
    if (event.getSequence() <= lastSequence) {
      return false;
    }
    boolean jumps = event.hasAttemptStarted() || event.hasSnapshot();
    if (event.getSequence() != lastSequence + 1 && !jumps) {
      throw new GapException(lastSequence, event.getSequence());
    }
    return true;
  }

  /** Takes in a new event. */
  void take(RunEvent event) {
    lastSequence = event.getSequence();
    view.apply(event);
    finished = view.finished();
    gaps = 0;
  }

  /**
   * The stream broke: nanoseconds to wait before joining again. Throws the error where that is of
   * no use.
   */
  long lost(FamulusException error) {
    if (error instanceof GapException && ++gaps >= MOST_GAPS) {
      throw error;
    }
    if (!error.isTransient() && view.runId().isEmpty()) {
      asked = false;
    }
    return outage.delay(error);
  }

  /**
   * The stream ended OK without a last event. Throws where the run, as it is now, has more to say.
   */
  void ended(Run run) {
    if (!RunView.isFinal(run.getState()) || run.getLastSequence() > lastSequence) {
      throw new FamulusException(
          Status.Code.UNAVAILABLE, "the stream ended before the run did", null);
    }
    view.adopt(run);
    finished = true;
  }
}
