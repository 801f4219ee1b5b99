// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.CreateRunRequest;
import dev.famulus.v1.RunEvent;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Function;

/** What a user of the client got to see of a run. */
record Followed(
    List<RunEvent> events,
    List<String> texts,
    RunView view,
    long lastSequence,
    FamulusException error) {
  static final CreateRunRequest CREATE =
      CreateRunRequest.newBuilder().setThreadId("thread_1").setAssistantId("asst_1").build();
  static final RetryPolicy QUICK =
      RetryPolicy.defaults()
          .withDelays(Duration.ofMillis(1), Duration.ofMillis(20))
          .withGiveUpAfter(Duration.ofSeconds(20))
          .withSilence(Duration.ofSeconds(5));

  /** Follows a new run to its end. */
  static Followed follow(ScriptedRuns runs) {
    return follow(runs, QUICK, client -> client.streamRun(CREATE), Integer.MAX_VALUE);
  }

  static Followed follow(ScriptedRuns runs, StreamOptions options) {
    return follow(runs, QUICK, client -> client.streamRun(CREATE, options), Integer.MAX_VALUE);
  }

  static Followed follow(ScriptedRuns runs, RetryPolicy policy) {
    return follow(runs, policy, client -> client.streamRun(CREATE), Integer.MAX_VALUE);
  }

  static Followed watch(ScriptedRuns runs, StreamOptions options) {
    return follow(runs, QUICK, client -> client.watchRun(Story.RUN_ID, options), Integer.MAX_VALUE);
  }

  /** Follows a run to its end, or for some events. */
  static Followed follow(
      ScriptedRuns runs, RetryPolicy policy, Function<FamulusClient, RunStream> open, int most) {
    List<RunEvent> events = new ArrayList<>();
    List<String> texts = new ArrayList<>();
    FamulusException error = null;
    try (FamulusClient client = FamulusClient.builder(runs.target()).retry(policy).build();
        RunStream stream = open.apply(client)) {
      try {
        for (RunEvent event : stream) {
          events.add(event);
          texts.add(stream.view().text());
          if (events.size() == most) {
            break;
          }
        }
      } catch (FamulusException failure) {
        error = failure;
      }
      return new Followed(events, texts, stream.view(), stream.lastSequence(), error);
    }
  }
}
