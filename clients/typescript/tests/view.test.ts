// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { MessageRole, MessageState, type RunEvent, RunState, RunStepState } from "../src/v1.js";
import { RunView } from "../src/view.js";
import { message, messageStep, plain, RUN_ID, Story } from "./story.js";

function viewOf(log: RunEvent[]): RunView {
  const view = new RunView();
  for (const event of log) {
    view.apply(event);
  }
  return view;
}

test("text grows by deltas until the message is stored", () => {
  const view = new RunView();
  const texts = plain().map((event) => {
    view.apply(event);
    return view.text;
  });
  assert.deepEqual(texts.slice(4, 9), ["Good", "Good ", "Good morning", "Good morning, ", "Good morning, world"]);
  assert.equal(view.messages[0]?.state, MessageState.COMPLETED);
  assert.equal(view.steps[0]?.state, RunStepState.COMPLETED);
  assert.equal(view.runId, RUN_ID);
  assert.ok(view.finished);
});

test("the view does not change the events", () => {
  const log = plain();
  const started = log[3];
  viewOf(log.slice(0, 6)).text;
  assert.ok(started?.event.case === "messageStarted");
  assert.deepEqual(started.event.value.message?.content, []);
});

test("a message whose start was not seen is drafted from its deltas", () => {
  const [draft] = viewOf(plain().slice(5, 7)).messages;
  assert.deepEqual([draft?.id, draft?.role, draft?.state], ["msg_1", MessageRole.ASSISTANT, MessageState.IN_PROGRESS]);
});

test("parts are filled by their index; senseless ones are left out", () => {
  const story = new Story().begin();
  const delta = (partIndex: number, text: string) =>
    story.tell({ case: "textDelta", value: { messageId: "msg_1", partIndex, text } });
  delta(1, "second");
  delta(0, "first ");
  delta(-1, "no");
  delta(1_000, "no");
  story.tell({ case: "refusalDelta", value: { messageId: "msg_1", partIndex: 2, refusal: "I " } });
  story.tell({ case: "refusalDelta", value: { messageId: "msg_1", partIndex: 2, refusal: "won't" } });
  story.tell({ case: "annotationAdded", value: { messageId: "msg_1", annotation: { text: "first" } } });
  const view = viewOf(story.log);
  const content = view.messages[0]?.content ?? [];
  assert.equal(view.text, "first second");
  assert.equal(content.length, 3);
  assert.ok(content[2]?.part.case === "refusal" && content[2].part.value.refusal === "I won't");
  assert.ok(content[0]?.part.case === "text" && content[0].part.value.annotations.length === 1);
});

test("calls grow in their step", () => {
  const story = new Story();
  const step = { id: "step_1", position: 1, state: RunStepState.IN_PROGRESS };
  story.tell({ case: "stepStarted", value: { step } });
  for (const [callId, name, argumentsJsonDelta] of [
    ["call_1", "f", '{"a"'],
    ["call_2", "g", "{}"],
    ["call_1", "", ":1}"],
  ] as const) {
    story.tell({ case: "toolCallDelta", value: { stepId: "step_1", callId, name, argumentsJsonDelta } });
  }
  const [{ details } = { details: undefined }] = viewOf(story.log).steps;
  assert.ok(details?.case === "toolCalls");
  const calls = details.value.toolCalls.map(({ id, call }) =>
    call.case === "function" ? [id, call.value.name, call.value.argumentsJson] : [],
  );
  assert.deepEqual(calls, [
    ["call_1", "f", '{"a":1}'],
    ["call_2", "g", "{}"],
  ]);
});

test("an attempt drops drafts that began, and deltas that came, behind a sequence", () => {
  const story = new Story().begin().text(["kept", ", gone"]).begin(2).text(["gone"], 2);
  const kept = 3n;
  const view = viewOf(story.takeover(2, kept, 100n).log);
  assert.equal(view.text, "kept");
  assert.equal(view.attempt, 2);
  assert.equal(view.steps.length, 1);
});

test("a snapshot replaces everything, and its unfinished message grows on", () => {
  const story = new Story().begin().text(["old"]);
  const snapshot = {
    run: { id: RUN_ID, state: RunState.IN_PROGRESS },
    messages: [message(5, "whole", MessageState.COMPLETED), message(6, "half", MessageState.IN_PROGRESS)],
    steps: [messageStep(6, RunStepState.IN_PROGRESS), messageStep(5, RunStepState.COMPLETED)],
  };
  story.tell({ case: "snapshot", value: snapshot }, 50n).text([" way"], 6);
  const view = viewOf(story.log);
  assert.equal(view.text, "whole\n\nhalf way");
  assert.deepEqual(
    view.steps.map(({ id }) => id),
    ["step_5", "step_6"],
  );
});

test("a final state drops what is still a draft", () => {
  const story = new Story().begin().text(["stored"]).end("stored").begin(2).text(["never"], 2);
  const view = viewOf(story.tell({ case: "reasoningDelta", value: { text: "hm" } }).state(RunState.FAILED).log);
  assert.equal(view.text, "stored");
  assert.equal(view.reasoning, "");
  assert.equal(view.steps.length, 1);
});

test("there is no result before an event brought the run", () => {
  assert.throws(() => new RunView().result(), /no event/);
});
