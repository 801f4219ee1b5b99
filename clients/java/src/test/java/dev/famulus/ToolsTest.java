// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import static dev.famulus.Followed.follow;
import static dev.famulus.Followed.watch;
import static dev.famulus.ScriptedRuns.reason;
import static dev.famulus.ScriptedRuns.refusal;
import static dev.famulus.ScriptedStream.cutAfter;
import static dev.famulus.ScriptedStream.repeatsAll;
import static dev.famulus.ScriptedStream.tells;
import static dev.famulus.Story.call;
import static dev.famulus.Story.withTools;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonParser;
import dev.famulus.v1.RequiredAction;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunState;
import dev.famulus.v1.ToolCall;
import dev.famulus.v1.ToolOutput;
import io.grpc.Status;
import java.time.Duration;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Function tools answered by the client. */
@Timeout(30)
final class ToolsTest {
  private static final Logger LOG = Logger.getLogger("dev.famulus");

  @BeforeAll
  static void beQuiet() {
    LOG.setUseParentHandlers(false);
  }

  record Weather(String city, int degrees) {}

  private static final ToolHandler WEATHER =
      arguments -> new Weather(arguments.get("city").getAsString(), 21);

  private final AtomicInteger ran = new AtomicInteger();
  private final ToolHandler note = arguments -> ran.incrementAndGet();

  @Test
  void callsAreAnsweredAndTheRunGoesOn() throws Exception {
    List<RunEvent> log =
        withTools(
            call("call_1", "weather", "{\"city\": \"Bern\"}"),
            call("call_2", "greet", ""),
            call("call_3", "echo", "{\"n\": 12345678901234567890}"));
    Map<String, ToolHandler> tools =
        Map.of(
            "weather", WEATHER,
            "greet", arguments -> "Grüezi" + arguments.size(),
            "echo", arguments -> arguments);
    try (ScriptedRuns runs = new ScriptedRuns(log)) {
      assertEquals(log, follow(runs, StreamOptions.defaults().withTools(tools)).events());
      assertEquals(Story.RUN_ID, runs.submitted.get(0).getRunId());
      Map<String, ToolOutput> outputs = outputs(runs);
      assertEquals(
          JsonParser.parseString("{\"city\": \"Bern\", \"degrees\": 21}"),
          JsonParser.parseString(outputs.get("call_1").getOutput()));
      assertEquals("Grüezi0", outputs.get("call_2").getOutput());
      assertEquals("{\"n\":12345678901234567890}", outputs.get("call_3").getOutput());
      assertTrue(outputs.values().stream().noneMatch(ToolOutput::getIsError));
    }
  }

  @Test
  void callsRunAtTheSameTime() throws Exception {
    CyclicBarrier meeting = new CyclicBarrier(3);
    ToolHandler meet = arguments -> meeting.await(10, TimeUnit.SECONDS) >= 0;
    ToolCall[] calls = {call("1", "meet", ""), call("2", "meet", ""), call("3", "meet", "")};
    try (ScriptedRuns runs = new ScriptedRuns(withTools(calls))) {
      follow(runs, StreamOptions.defaults().withTools(Map.of("meet", meet)));
      assertTrue(outputs(runs).values().stream().allMatch(each -> each.getOutput().equals("true")));
    }
  }

  @Test
  void whatGoesWrongInAToolIsLoggedUnlessItIsForTheModel() throws Exception {
    IllegalStateException defect = new IllegalStateException("a password");
    Map<String, ToolHandler> tools =
        Map.of(
            "fails",
            arguments -> {
              throw defect;
            },
            "explains",
            arguments -> {
              throw new ToolException("the shop is closed");
            });
    List<LogRecord> records = new CopyOnWriteArrayList<>();
    Handler handler =
        new Handler() {
          @Override
          public void publish(LogRecord logged) {
            records.add(logged);
          }

          @Override
          public void flush() {}

          @Override
          public void close() {}
        };
    LOG.addHandler(handler);
    try (ScriptedRuns runs =
        new ScriptedRuns(withTools(call("1", "fails", ""), call("2", "explains", "")))) {
      follow(runs, StreamOptions.defaults().withTools(tools));
    } finally {
      LOG.removeHandler(handler);
    }
    assertEquals(1, records.size());
    assertEquals("the tool fails failed, in the call 1", records.get(0).getMessage());
    assertSame(defect, records.get(0).getThrown());
  }

  @Test
  void theModelIsToldWhatWentWrongAndNothingElse() throws Exception {
    CountDownLatch interrupted = new CountDownLatch(1);
    Map<String, ToolHandler> tools = new HashMap<>();
    tools.put("weather", WEATHER);
    tools.put(
        "fails",
        arguments -> {
          throw new IllegalStateException("a password");
        });
    tools.put(
        "explains",
        arguments -> {
          throw new ToolException("the shop is closed");
        });
    tools.put(
        "hangs",
        arguments -> {
          try {
            new CountDownLatch(1).await();
          } finally {
            interrupted.countDown();
          }
          return "late";
        });
    tools.put("odd", arguments -> Double.NaN);
    tools.put("large", arguments -> "x".repeat((1 << 20) + 1));
    tools.put(
        "breaks",
        arguments -> {
          throw new StackOverflowError();
        });
    Map<ToolCall, String> told = new LinkedHashMap<>();
    told.put(call("1", "fails", ""), "the tool failed: IllegalStateException");
    told.put(call("2", "explains", "{}"), "the shop is closed");
    told.put(call("3", "unheard_of", "{}"), "there is no tool of this name");
    told.put(call("4", "weather", "{"), "the arguments are not JSON");
    told.put(call("5", "weather", "[1]"), "the arguments are not a JSON object");
    told.put(call("6", "weather", "{city: 'Bern'}"), "the arguments are not JSON");
    told.put(call("7", "weather", "[".repeat(100_000)), "the arguments are not JSON");
    told.put(call("8", "hangs", ""), "the tool took longer than 0.3 seconds");
    told.put(call("9", "odd", ""), "the tool's result cannot be written as JSON");
    told.put(call("10", "large", ""), "the tool's result is larger than 1 MiB");
    told.put(call("11", "breaks", ""), "the tool failed: StackOverflowError");
    told.put(call("12", "weather", "{} {}"), "the arguments are not JSON");
    try (ScriptedRuns runs = new ScriptedRuns(withTools(told.keySet().toArray(ToolCall[]::new)))) {
      StreamOptions options =
          StreamOptions.defaults().withTools(tools).withToolTimeout(Duration.ofMillis(300));
      assertEquals("Done", follow(runs, options).view().text());
      Map<String, ToolOutput> outputs = outputs(runs);
      told.forEach((call, text) -> assertEquals(text, outputs.get(call.getId()).getOutput()));
      assertTrue(outputs.values().stream().allMatch(ToolOutput::getIsError));
      assertTrue(interrupted.await(10, TimeUnit.SECONDS));
    }
  }

  @Test
  void textThatTheServiceWouldRefuseIsMended() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(withTools(call("1", "odd", "")))) {
      follow(runs, StreamOptions.defaults().withTools(Map.of("odd", arguments -> "a\ud800b\0c")));
      assertEquals("a?b\uFFFDc", outputs(runs).get("1").getOutput());
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aCallThatIsAskedForAgainRunsOnce(boolean repeated) throws Exception {
    List<RunEvent> log = withTools(call("1", "note", ""));
    ScriptedStream.Serving again = repeated ? repeatsAll() : cutAfter(1);
    try (ScriptedRuns runs = new ScriptedRuns(log, cutAfter(2), again)) {
      assertEquals(
          log, follow(runs, StreamOptions.defaults().withTools(Map.of("note", note))).events());
      assertEquals(1, ran.get());
      assertEquals(1, runs.submitted.size());
    }
  }

  @Test
  void aCallOfThePastDoesNotRunAgain() throws Exception {
    List<RunEvent> log = withTools(call("1", "note", ""));
    try (ScriptedRuns runs = new ScriptedRuns(log)) {
      runs.publish();
      assertEquals(
          log, watch(runs, StreamOptions.defaults().withTools(Map.of("note", note))).events());
      assertEquals(0, ran.get());
      assertEquals(List.of(), runs.submitted);
    }
  }

  @Test
  void aReaderWhoJoinsAfterTheQuestionAnswersIt() throws Exception {
    List<RunEvent> log = withTools(call("1", "note", ""));
    try (ScriptedRuns runs = new ScriptedRuns(log)) {
      StreamOptions options =
          StreamOptions.defaults().withAfterSequence(3).withTools(Map.of("note", note));
      assertEquals(log.subList(3, log.size()), follow(runs, options).events());
      assertFalse(outputs(runs).get("1").getIsError());
    }
  }

  @Test
  void aSnapshotAsksForOutputsToo() throws Exception {
    ToolCall asked = call("1", "note", "");
    Run run =
        Run.newBuilder()
            .setId(Story.RUN_ID)
            .setState(RunState.RUN_STATE_REQUIRES_ACTION)
            .setRequiredAction(RequiredAction.newBuilder().addToolCalls(asked))
            .build();
    try (ScriptedRuns runs = new ScriptedRuns(withTools(asked), tells(Story.snapshot(3, run)))) {
      follow(runs, StreamOptions.defaults().withTools(Map.of("note", note)));
      assertEquals(Set.of("1"), outputs(runs).keySet());
    }
  }

  @Test
  void outputsAreSubmittedThroughOutages() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(withTools(call("1", "note", "")))) {
      runs.refusals.add(refusal(Status.Code.UNAVAILABLE, "not now"));
      runs.refusals.add(refusal(Status.Code.UNAVAILABLE, "not now"));
      Followed seen = follow(runs, StreamOptions.defaults().withTools(Map.of("note", note)));
      assertEquals("Done", seen.view().text());
      assertEquals(1, ran.get());
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"RUN_NOT_WAITING", "TOOL_OUTPUT_CONFLICT", "RUN_EXPIRED"})
  void thatSomebodyElseWasFasterIsNoError(String reason) throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(withTools(call("1", "note", "")))) {
      runs.refusals.add(refusal(Status.Code.FAILED_PRECONDITION, "late", reason(reason)));
      ToolHandler answeredElsewhere =
          arguments -> {
            note.call(arguments);
            new Thread(runs::publish).start();
            return "mine";
          };
      Followed seen =
          follow(runs, StreamOptions.defaults().withTools(Map.of("note", answeredElsewhere)));
      assertEquals("Done", seen.view().text());
      assertEquals(List.of(), runs.submitted);
    }
  }

  @Test
  void anyOtherRefusalEndsTheStream() throws Exception {
    try (ScriptedRuns runs = new ScriptedRuns(withTools(call("1", "note", "")))) {
      runs.refusals.add(refusal(Status.Code.PERMISSION_DENIED, "no", reason("PERMISSION_DENIED")));
      Followed seen = follow(runs, StreamOptions.defaults().withTools(Map.of("note", note)));
      assertEquals(Status.Code.PERMISSION_DENIED, seen.error().code());
      assertEquals(3, seen.lastSequence());
    }
  }

  @Test
  void eventsComeWhileToolsRun() throws Exception {
    CountDownLatch seenBoth = new CountDownLatch(1);
    try (ScriptedRuns runs = new ScriptedRuns(withTools(call("1", "waits", "")));
        FamulusClient client = FamulusClient.builder(runs.target()).build();
        RunStream stream =
            client.streamRun(
                Followed.CREATE,
                StreamOptions.defaults()
                    .withTools(
                        Map.of("waits", arguments -> seenBoth.await(10, TimeUnit.SECONDS))))) {
      for (RunEvent event : stream) {
        if (event.getSequence() == 3) {
          seenBoth.countDown();
        }
      }
      assertEquals("true", outputs(runs).get("1").getOutput());
    }
  }

  @Test
  void leavingInterruptsTheToolsAndDropsTheirOutputs() throws Exception {
    CountDownLatch begun = new CountDownLatch(1);
    CountDownLatch interrupted = new CountDownLatch(1);
    ToolHandler hangs =
        arguments -> {
          begun.countDown();
          try {
            new CountDownLatch(1).await();
          } catch (InterruptedException stopped) {
            interrupted.countDown();
          }
          return "late";
        };
    try (ScriptedRuns runs = new ScriptedRuns(withTools(call("1", "hangs", "")));
        FamulusClient client = FamulusClient.builder(runs.target()).build()) {
      StreamOptions options = StreamOptions.defaults().withTools(Map.of("hangs", hangs));
      try (RunStream stream = client.streamRun(Followed.CREATE, options)) {
        for (RunEvent event : stream) {
          if (event.getSequence() == 3) {
            break;
          }
        }
        assertTrue(begun.await(10, TimeUnit.SECONDS));
      }
      assertTrue(interrupted.await(10, TimeUnit.SECONDS));
      assertEquals(List.of(), runs.submitted);
    }
  }

  private static Map<String, ToolOutput> outputs(ScriptedRuns runs) {
    assertEquals(1, runs.submitted.size());
    Map<String, ToolOutput> outputs = new HashMap<>();
    runs.submitted.get(0).getToolOutputsList().forEach(each -> outputs.put(each.getCallId(), each));
    return outputs;
  }
}
