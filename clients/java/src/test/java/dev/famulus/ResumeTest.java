// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import static dev.famulus.Followed.QUICK;
import static dev.famulus.Followed.follow;
import static dev.famulus.Followed.watch;
import static dev.famulus.ScriptedRuns.reason;
import static dev.famulus.ScriptedRuns.refusal;
import static dev.famulus.ScriptedRuns.retryAfter;
import static dev.famulus.ScriptedStream.cutAfter;
import static dev.famulus.ScriptedStream.endsAfter;
import static dev.famulus.ScriptedStream.heartbeats;
import static dev.famulus.ScriptedStream.inOneBatch;
import static dev.famulus.ScriptedStream.repeatsAll;
import static dev.famulus.ScriptedStream.silentAfter;
import static dev.famulus.ScriptedStream.tells;
import static dev.famulus.ScriptedStream.without;
import static dev.famulus.Story.RUN_ID;
import static dev.famulus.Story.plain;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.famulus.v1.ErrorReason;
import dev.famulus.v1.MessageState;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunState;
import dev.famulus.v1.StreamRunRequest;
import dev.famulus.v1.WatchRunRequest;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Streams that break. */
@Timeout(30)
final class ResumeTest {
  static Stream<List<RunEvent>> logs() {
    return Stream.of(plain(), Story.takenOver());
  }

  @ParameterizedTest
  @MethodSource("logs")
  void whateverEventTheStreamIsCutAtTheUserSeesTheWholeLog(List<RunEvent> log) throws Exception {
    Followed uncut;
    try (ScriptedRuns runs = new ScriptedRuns(log)) {
      uncut = follow(runs);
    }
    assertEquals(log, uncut.events());
    for (int cut = 0; cut <= log.size(); cut++) {
      try (ScriptedRuns runs = new ScriptedRuns(log, cutAfter(cut))) {
        Followed seen = follow(runs);
        assertNull(seen.error());
        assertEquals(log, seen.events());
        assertEquals(uncut.texts(), seen.texts());
        assertEquals(cut < log.size() ? 2 : 1, runs.streams.size());
      }
    }
  }

  @Test
  void aStreamMayBreakAtEverySingleEvent() throws Exception {
    List<RunEvent> log = Story.takenOver();
    ScriptedStream.Serving[] cuts =
        Collections.nCopies(log.size(), cutAfter(1)).toArray(ScriptedStream.Serving[]::new);
    try (ScriptedRuns runs = new ScriptedRuns(log, cuts)) {
      Followed seen = follow(runs);
      assertEquals(log, seen.events());
      assertEquals("One\n\nTwo, we say", seen.view().text());
      assertEquals(3, seen.view().attempt());
    }
  }

  @Test
  void aResumeIsTheSameRequestUntilTheRunHasAName() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), cutAfter(0), cutAfter(3))) {
      follow(runs);
      StreamRunRequest first =
          assertInstanceOf(StreamRunRequest.class, runs.streams.get(0).request);
      assertEquals(first, runs.streams.get(1).request);
      assertEquals("thread_1", first.getCreate().getThreadId());
      assertTrue(first.getCreate().getRequestId().length() >= 32);
      WatchRunRequest third =
          WatchRunRequest.newBuilder().setRunId(RUN_ID).setAfterSequence(3).build();
      assertEquals(third, runs.streams.get(2).request);
    }
  }

  static Stream<ScriptedStream.Serving> breaks() {
    return Stream.of(
        cutAfter(4, refusal(Status.Code.ABORTED, "slow", reason("SLOW_CONSUMER"))),
        cutAfter(4, refusal(Status.Code.UNAUTHENTICATED, "old", reason("CREDENTIALS_EXPIRED"))),
        cutAfter(4, error(Status.INTERNAL, "Received RST_STREAM with error code 2")),
        cutAfter(
            4, error(Status.INTERNAL, "HTTP/2 error code: INTERNAL_ERROR\nReceived Rst Stream")),
        cutAfter(4, error(Status.UNKNOWN, "Stream removed")),
        cutAfter(4, error(Status.CANCELLED, "CANCELLED")),
        cutAfter(
            4,
            refusal(
                Status.Code.UNAVAILABLE,
                "bye",
                reason("SERVER_DRAINING"),
                retryAfter(Duration.ofMillis(10)))),
        endsAfter(4));
  }

  @ParameterizedTest
  @MethodSource("breaks")
  void aStreamIsResumedAfter(ScriptedStream.Serving broken) throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), broken)) {
      assertEquals(plain(), follow(runs).events());
      assertEquals(4, runs.streams.get(1).after);
    }
  }

  static Stream<StatusRuntimeException> ends() {
    return Stream.of(
        refusal(Status.Code.NOT_FOUND, "gone", reason("THREAD_DELETED")),
        refusal(Status.Code.ABORTED, "stale", reason("ETAG_MISMATCH")),
        refusal(Status.Code.INTERNAL, "reference RST_STREAM", reason("INTERNAL")),
        refusal(Status.Code.INTERNAL, "no idea"),
        refusal(Status.Code.RESOURCE_EXHAUSTED, "limited", retryAfter(Duration.ofMillis(10))));
  }

  @ParameterizedTest
  @MethodSource("ends")
  void aStreamIsNotResumedAfter(StatusRuntimeException error) throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), cutAfter(4, error))) {
      Followed seen = follow(runs);
      assertEquals(error.getStatus().getCode(), seen.error().code());
      assertEquals(plain().subList(0, 4), seen.events());
      assertEquals(4, seen.lastSequence());
      assertEquals(1, runs.streams.size());
    }
  }

  @Test
  void theWaitThatTheServiceAsksForIsKept() throws Exception {
    Duration told = Duration.ofMillis(300);
    StatusRuntimeException overloaded =
        refusal(Status.Code.UNAVAILABLE, "busy", reason("SERVER_OVERLOADED"), retryAfter(told));
    try (ScriptedRuns runs = new ScriptedRuns(plain(), cutAfter(2, overloaded))) {
      long start = System.nanoTime();
      assertEquals(plain(), follow(runs).events());
      assertTrue(System.nanoTime() - start >= told.toNanos());
    }
  }

  @Test
  void aWaitLongerThanThePatienceIsNotBegun() throws Exception {
    StatusRuntimeException overloaded =
        refusal(
            Status.Code.UNAVAILABLE,
            "busy",
            reason("SERVER_OVERLOADED"),
            retryAfter(Duration.ofHours(1)));
    try (ScriptedRuns runs = new ScriptedRuns(plain(), cutAfter(3, overloaded))) {
      Followed seen = follow(runs);
      assertEquals(ErrorReason.ERROR_REASON_SERVER_OVERLOADED, seen.error().reason());
      assertEquals(Duration.ofHours(1), seen.error().retryAfter().orElseThrow());
    }
  }

  @Test
  void anOutageThatLastsTooLongIsToldWithThePlaceToResumeAt() throws Exception {
    List<ScriptedStream.Serving> cuts = new ArrayList<>(Collections.nCopies(1_000, cutAfter(0)));
    cuts.add(0, cutAfter(3));
    try (ScriptedRuns runs =
        new ScriptedRuns(plain(), cuts.toArray(ScriptedStream.Serving[]::new))) {
      Followed seen = follow(runs, QUICK.withGiveUpAfter(Duration.ofMillis(200)));
      assertEquals(Status.Code.UNAVAILABLE, seen.error().code());
      assertEquals(3, seen.lastSequence());
    }
  }

  @Test
  void aSilentStreamIsLeftForAnother() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), silentAfter(5))) {
      Followed seen = follow(runs, QUICK.withSilence(Duration.ofMillis(200)));
      assertEquals(plain(), seen.events());
      assertTrue(runs.streams.get(0).closed.await(5, TimeUnit.SECONDS));
      assertEquals(2, runs.streams.size());
    }
  }

  @Test
  void heartbeatsKeepAStreamWithoutEvents() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), heartbeats(5, Duration.ofMillis(150)))) {
      Followed seen = follow(runs, QUICK.withSilence(Duration.ofMillis(500)));
      assertEquals(plain(), seen.events());
      assertEquals(1, runs.streams.size());
    }
  }

  @Test
  void eventsThatComeAgainAreDropped() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), cutAfter(5), repeatsAll())) {
      assertEquals(plain(), follow(runs).events());
      assertEquals(2, runs.streams.size());
    }
  }

  @Test
  void aBatchIsHandedOutOneByOne() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), inOneBatch())) {
      Followed seen = follow(runs, QUICK, client -> client.streamRun(Followed.CREATE), 3);
      assertEquals(plain().subList(0, 3), seen.events());
      assertEquals(3, seen.lastSequence());
    }
  }

  @Test
  void aGapIsClosedByAnotherStream() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), without(6))) {
      assertEquals(plain(), follow(runs).events());
      assertEquals(List.of(0L, 5L), runs.streams.stream().map(stream -> stream.after).toList());
    }
  }

  @Test
  void aGapThatStaysIsAnError() throws Exception {
    ScriptedStream.Serving[] gaps =
        Collections.nCopies(10, without(6)).toArray(ScriptedStream.Serving[]::new);
    try (ScriptedRuns runs = new ScriptedRuns(plain(), gaps)) {
      Followed seen = follow(runs);
      GapException gap = assertInstanceOf(GapException.class, seen.error());
      assertEquals(Status.Code.DATA_LOSS, gap.code());
      assertEquals(5, gap.after());
      assertEquals(7, gap.received());
      assertEquals(plain().subList(0, 5), seen.events());
      assertEquals(3, runs.streams.size());
    }
  }

  @Test
  void aSnapshotStandsForTheEventsThatAreGone() throws Exception {
    List<RunEvent> log =
        new Story()
            .state(RunState.RUN_STATE_IN_PROGRESS)
            .begin(1)
            .text(1, "Goo", "d", " m", "or", "ning")
            .end(1, "Good morning")
            .state(RunState.RUN_STATE_COMPLETED)
            .log();
    Run run = Run.newBuilder().setId(RUN_ID).setState(RunState.RUN_STATE_IN_PROGRESS).build();
    RunEvent taken =
        Story.snapshot(
            7, run, Story.message(1, "Good mor", MessageState.MESSAGE_STATE_IN_PROGRESS));
    try (ScriptedRuns runs = new ScriptedRuns(log, cutAfter(5), tells(taken))) {
      Followed seen = follow(runs);
      List<RunEvent> expected = new ArrayList<>(log.subList(0, 5));
      expected.add(taken);
      expected.addAll(log.subList(7, log.size()));
      assertEquals(expected, seen.events());
      assertEquals(List.of("Good", "Good mor", "Good morning"), seen.texts().subList(4, 7));
    }
  }

  @Test
  void aSnapshotOfAFinishedRunIsItsEnd() throws Exception {
    Run run =
        Run.newBuilder()
            .setId(RUN_ID)
            .setState(RunState.RUN_STATE_COMPLETED)
            .setLastSequence(40)
            .build();
    RunEvent taken =
        Story.snapshot(40, run, Story.message(1, "Done", MessageState.MESSAGE_STATE_COMPLETED));
    try (ScriptedRuns runs = new ScriptedRuns(plain(), tells(taken))) {
      Followed seen = watch(runs, StreamOptions.defaults());
      assertEquals(List.of(taken), seen.events());
      assertEquals("Done", seen.view().result().text());
      assertEquals(1, runs.streams.size());
    }
  }

  @Test
  void aRunOfWhichEverythingWasSeenEndsAtOnce() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain())) {
      Followed seen = watch(runs, StreamOptions.defaults().withAfterSequence(plain().size()));
      assertNull(seen.error());
      assertEquals(List.of(), seen.events());
      assertTrue(seen.view().finished());
    }
  }

  @Test
  void kindsOfANewerVersionAreSkippedWithoutAGap() throws Exception {
    List<RunEvent> log =
        new Story()
            .state(RunState.RUN_STATE_IN_PROGRESS)
            .tell(RunEvent.newBuilder())
            .begin(1)
            .end(1, "Hi")
            .state(RunState.RUN_STATE_COMPLETED)
            .log();
    try (ScriptedRuns runs = new ScriptedRuns(log, cutAfter(2))) {
      List<RunEvent> known = new ArrayList<>(log);
      known.remove(1);
      assertEquals(known, follow(runs).events());
    }
  }

  @Test
  void aReaderJoinsInTheMiddle() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain())) {
      Followed seen = watch(runs, StreamOptions.defaults().withAfterSequence(6));
      assertEquals(plain().subList(6, plain().size()), seen.events());
      assertEquals("morning", seen.texts().get(0));
      assertEquals("Good morning, world", seen.view().text());
    }
  }

  private static StatusRuntimeException error(Status status, String description) {
    return status.withDescription(description).asRuntimeException();
  }
}
