// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import static dev.famulus.Followed.CREATE;
import static dev.famulus.Followed.QUICK;
import static dev.famulus.Followed.follow;
import static dev.famulus.ScriptedRuns.reason;
import static dev.famulus.ScriptedRuns.refusal;
import static dev.famulus.ScriptedRuns.retryAfter;
import static dev.famulus.ScriptedRuns.wrong;
import static dev.famulus.ScriptedStream.cutAfter;
import static dev.famulus.ScriptedStream.silentAfter;
import static dev.famulus.Story.RUN_ID;
import static dev.famulus.Story.plain;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.famulus.v1.ErrorReason;
import dev.famulus.v1.GetRunRequest;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunState;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Supplier;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What the client opens, it closes; and what it cannot open, it explains. */
@Timeout(30)
final class ClientTest {
  private static final StreamOptions CANCELLING = StreamOptions.defaults().withCancelOnExit();

  @Test
  void leavingAStreamCancelsItsCallAndNotTheRun() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), silentAfter(5));
        FamulusClient client = FamulusClient.builder(runs.target()).build()) {
      try (RunStream stream = client.streamRun(CREATE)) {
        Iterator<RunEvent> events = stream.iterator();
        while (events.next().getSequence() < 5) {}
      }
      assertGone(runs, 0);
      assertEquals(List.of(), runs.cancelled);
    }
  }

  @Test
  void leavingAStreamCancelsTheRunWhereThatWasAskedFor() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), silentAfter(5))) {
      follow(runs, QUICK, client -> client.streamRun(CREATE, CANCELLING), 5);
      assertEquals(List.of(RUN_ID), runs.cancelled);
    }
  }

  @Test
  void aRunThatEndedOrWasRefusedIsNotCancelled() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain())) {
      follow(runs, CANCELLING);
      assertEquals(List.of(), runs.cancelled);
    }
    StatusRuntimeException limited =
        refusal(Status.Code.RESOURCE_EXHAUSTED, "no", reason("RATE_LIMITED"));
    try (ScriptedRuns runs = new ScriptedRuns(plain(), cutAfter(0, limited))) {
      assertEquals(
          ErrorReason.ERROR_REASON_RATE_LIMITED, follow(runs, CANCELLING).error().reason());
      assertEquals(List.of(), runs.cancelled);
      assertEquals(List.of(), runs.created);
    }
  }

  @Test
  void interruptingTheReaderCancelsTheCallAndTheRunIfAskedFor() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), silentAfter(5))) {
      Thread reader = Thread.currentThread();
      boolean interrupted;
      try (FamulusClient client = FamulusClient.builder(runs.target()).build();
          RunStream stream = client.streamRun(CREATE, CANCELLING)) {
        Iterator<RunEvent> events = stream.iterator();
        while (events.next().getSequence() < 5) {}
        CompletableFuture.runAsync(reader::interrupt);
        FamulusException error = assertThrows(FamulusException.class, events::hasNext);
        assertEquals(Status.Code.CANCELLED, error.code());
      } finally {
        interrupted = Thread.interrupted();
      }
      assertTrue(interrupted);
      assertGone(runs, 0);
      assertEquals(List.of(RUN_ID), runs.cancelled);
    }
  }

  @Test
  @SuppressWarnings("try") // closing it by hand is the point
  void aStreamThatAnotherThreadClosesEndsWithAnError() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), silentAfter(5));
        FamulusClient client = FamulusClient.builder(runs.target()).build();
        RunStream stream = client.streamRun(CREATE)) {
      CompletableFuture<Integer> reading =
          CompletableFuture.supplyAsync(
              () -> {
                int count = 0;
                for (RunEvent event : stream) {
                  count += event.getSequence() > 0 ? 1 : 0;
                }
                return count;
              });
      while (stream.lastSequence() < 5) {
        Thread.onSpinWait();
      }
      stream.close();
      ExecutionException error = assertThrows(ExecutionException.class, reading::get);
      assertEquals(Status.Code.CANCELLED, ((FamulusException) error.getCause()).code());
      assertGone(runs, 0);
    }
  }

  @Test
  void closingTheClientEndsItsStreamsAndThreads() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), silentAfter(5))) {
      FamulusClient client = FamulusClient.builder(runs.target()).build();
      RunStream stream = client.streamRun(CREATE, StreamOptions.defaults().withTools(Map.of()));
      Iterator<RunEvent> events = stream.iterator();
      while (events.next().getSequence() < 5) {}
      client.close();
      assertThrows(FamulusException.class, events::next);
      assertGone(runs, 0);
    }
    for (Thread thread : Thread.getAllStackTraces().keySet()) {
      if (thread.getName().startsWith("famulus-")) {
        thread.join(TimeUnit.SECONDS.toMillis(10));
        assertFalse(thread.isAlive(), thread.getName());
      }
    }
  }

  @Test
  void theServerEndsAStreamThatWasReadToItsEnd() throws Exception {
    ScriptedStream.Serving lingers =
        stream -> {
          stream.whole();
          assertFalse(stream.closed.await(200, TimeUnit.MILLISECONDS));
        };
    try (ScriptedRuns runs = new ScriptedRuns(plain(), lingers)) {
      follow(runs);
      assertTrue(runs.streams.get(0).closed.await(10, TimeUnit.SECONDS));
      assertFalse(runs.streams.get(0).cancelled());
    }
  }

  @Test
  void aServerThatDoesNotEndAStreamAfterTheLastEventIsLeft() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain(), silentAfter(plain().size()))) {
      assertEquals(plain(), follow(runs).events());
      assertGone(runs, 0);
      assertEquals(1, runs.streams.size());
    }
  }

  @Test
  void aStreamThatIsNotIteratedOverIsNotOpened() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain());
        FamulusClient client = FamulusClient.builder(runs.target()).build()) {
      client.streamRun(CREATE, CANCELLING).close();
      assertEquals(List.of(), runs.streams);
      assertEquals(List.of(), runs.created);
    }
  }

  @Test
  void aRunIsWaitedForThroughOutages() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(Story.withTools(Story.call("1", "greet", "")));
        FamulusClient client = FamulusClient.builder(runs.target()).retry(QUICK).build()) {
      runs.refusals.add(refusal(Status.Code.UNAVAILABLE, "not now"));
      runs.refusals.add(refusal(Status.Code.UNAVAILABLE, "not now"));
      assertEquals(RunState.RUN_STATE_REQUIRES_ACTION, client.runToEnd(CREATE).run().getState());
      runs.refusals.add(refusal(Status.Code.UNAVAILABLE, "not now"));
      client.runToEnd(CREATE);
      assertNotEquals(runs.created.get(0).getRequestId(), runs.created.get(1).getRequestId());
      runs.publish();
      assertEquals("Done", client.waitRun(RUN_ID).text());
    }
  }

  @Test
  void aWaitOutlastsTheDeadlineOfItsCalls() throws Exception {
    List<RunEvent> log = plain();
    RetryPolicy hasty = QUICK.withSilence(Duration.ofMillis(100));
    try (ScriptedRuns runs = new ScriptedRuns(log.subList(0, log.size() - 1));
        FamulusClient client = FamulusClient.builder(runs.target()).retry(hasty).build()) {
      CompletableFuture<RunResult> waiting =
          CompletableFuture.supplyAsync(() -> client.waitRun(RUN_ID));
      CompletableFuture<Void> threeDeadlines =
          CompletableFuture.runAsync(
              () -> runs.add(log.get(log.size() - 1)),
              CompletableFuture.delayedExecutor(350, TimeUnit.MILLISECONDS));
      assertEquals("Good morning, world", waiting.get().text());
      assertTrue(threeDeadlines.isDone());
    }
  }

  @Test
  void aRunWithToolsIsFollowedToItsEnd() throws Exception {
    StreamOptions options = StreamOptions.defaults().withTools(Map.of("greet", arguments -> "Hi"));
    try (ScriptedRuns runs = new ScriptedRuns(Story.withTools(Story.call("1", "greet", "")));
        FamulusClient client = FamulusClient.builder(runs.target()).build()) {
      assertEquals("Done", client.runToEnd(CREATE, options).text());
    }
  }

  @Test
  void errorsSayWhatTheServiceSays() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(plain());
        FamulusClient client = FamulusClient.builder(runs.target()).build()) {
      runs.refusals.add(
          refusal(
              Status.Code.INVALID_ARGUMENT,
              "create.model: is wrong",
              reason("INVALID_FIELD"),
              wrong("create.model"),
              retryAfter(Duration.ofMillis(1_500))));
      FamulusException error = assertThrows(FamulusException.class, () -> client.runToEnd(CREATE));
      assertEquals("INVALID_ARGUMENT / INVALID_FIELD: create.model: is wrong", error.getMessage());
      assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
      assertEquals(ErrorReason.ERROR_REASON_INVALID_FIELD, error.reason());
      assertEquals(Map.of("model", "m"), error.metadata());
      assertEquals(List.of(new Violation("create.model", "is wrong")), error.violations());
      assertEquals(Duration.ofMillis(1_500), error.retryAfter().orElseThrow());
      assertFalse(error.isTransient());
    }
  }

  @Test
  void errorsOfTheStubsAndReasonsOfNewerVersionsAreUnderstood() throws Exception {
    FamulusException newer =
        FamulusException.from(refusal(Status.Code.ABORTED, "soon", reason("NOT_YET_INVENTED")));
    assertEquals(ErrorReason.ERROR_REASON_UNSPECIFIED, newer.reason());
    assertEquals("NOT_YET_INVENTED", newer.reasonName());
    FamulusClient closed = FamulusClient.builder("127.0.0.1:1").build();
    closed.close();
    StatusRuntimeException raw =
        assertThrows(
            StatusRuntimeException.class,
            () -> closed.runs().getRun(GetRunRequest.getDefaultInstance()));
    assertEquals(Status.Code.UNAVAILABLE, FamulusException.from(raw).code());
  }

  @Test
  void aTokenIsAskedForBeforeEachCallAndShown() throws Exception {
    AtomicInteger number = new AtomicInteger();
    try (ScriptedRuns runs = new ScriptedRuns(plain(), cutAfter(3));
        FamulusClient client =
            FamulusClient.builder(runs.target())
                .retry(QUICK)
                .token(() -> "t" + number.incrementAndGet())
                .build()) {
      try (RunStream stream = client.streamRun(CREATE)) {
        stream.forEach(event -> {});
      }
      client.runs().getRun(GetRunRequest.getDefaultInstance());
      assertEquals(List.of("Bearer t1", "Bearer t2", "Bearer t3"), runs.tokens);
    }
  }

  @Test
  void aSourceOfTokensThatFailsIsAskedAgain() throws Exception {
    AtomicInteger number = new AtomicInteger();
    Supplier<String> source =
        () -> {
          if (number.incrementAndGet() == 1) {
            throw new IllegalStateException("the door is closed");
          }
          return "t" + number + "\n"; // as files end
        };
    try (ScriptedRuns runs = new ScriptedRuns(plain());
        FamulusClient client =
            FamulusClient.builder(runs.target()).retry(QUICK).token(source).build()) {
      assertEquals("Good morning, world", client.waitRun(RUN_ID).text());
      assertEquals(List.of("Bearer t2"), runs.tokens);
    }
  }

  @Test
  void anErrorOfTheConnectionSaysWhatIsWrong() {
    RetryPolicy once = RetryPolicy.defaults().withGiveUpAfter(Duration.ZERO);
    try (FamulusClient client = FamulusClient.builder("127.0.0.1:1").retry(once).build()) {
      FamulusException error = assertThrows(FamulusException.class, () -> client.waitRun("run_1"));
      assertEquals(Status.Code.UNAVAILABLE, error.code());
      assertTrue(error.getMessage().contains("Connection refused"), error.getMessage());
    }
  }

  @Test
  void aSourceOfTokensThatGoesOnFailingIsToldWhenPatienceEnds() throws Exception {
    RetryPolicy impatient = QUICK.withGiveUpAfter(Duration.ZERO);
    List<Supplier<String>> sources =
        List.of(
            () -> {
              throw new AssertionError("the door is closed");
            },
            () -> "no token");
    for (Supplier<String> source : sources) {
      try (ScriptedRuns runs = new ScriptedRuns(plain());
          FamulusClient client =
              FamulusClient.builder(runs.target()).retry(impatient).token(source).build()) {
        FamulusException error = assertThrows(FamulusException.class, () -> client.waitRun(RUN_ID));
        assertEquals(Status.Code.UNAVAILABLE, error.code());
        assertTrue(error.description().startsWith("there is no token: java.lang."));
      }
    }
  }

  @Test
  void whatIsNoTokenOrNoTargetIsRefusedAtOnce() {
    ClientBuilder builder = FamulusClient.builder("127.0.0.1:1");
    for (String token : List.of("", " \n", "two words", "line\nbreak", "t\u00f6k")) {
      assertThrows(IllegalArgumentException.class, () -> builder.token(token), token);
    }
    for (String target : List.of("", " ", "http://127.0.0.1:7461", "HTTPS://famulus.example")) {
      assertThrows(IllegalArgumentException.class, () -> FamulusClient.builder(target), target);
    }
  }

  @Test
  void aTokenDoesNotLeaveThisMachineWithoutEncryption() {
    assertThrows(
        IllegalStateException.class,
        () -> FamulusClient.builder("famulus.example:7461").token("t").build());
    FamulusClient.builder("dns:///famulus.example:7461")
        .token("t")
        .allowTokenInPlaintext()
        .build()
        .close();
    FamulusClient.builder("famulus.example:443").tls().token("t").build().close();
    assertTrue(Target.isLoopback("localhost:7461"));
    assertTrue(Target.isLoopback("dns:///127.0.0.1:7461"));
    assertTrue(Target.isLoopback("[::1]:7461"));
    assertFalse(Target.isLoopback("127.0.0.1.example:7461"));
    assertFalse(Target.isLoopback("10.0.0.1:7461"));
    assertFalse(Target.isLoopback("[::2]:7461"));
  }

  private static void assertGone(ScriptedRuns runs, int stream) throws InterruptedException {
    assertTrue(runs.streams.get(stream).closed.await(10, TimeUnit.SECONDS));
  }
}
