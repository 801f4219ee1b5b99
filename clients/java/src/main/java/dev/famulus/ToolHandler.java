// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import com.google.gson.JsonObject;

/** A function that the model may call. */
@FunctionalInterface
public interface ToolHandler {
  /**
   * Answers one call. It runs in a thread of its own, at the same time as the other calls of the
   * turn, and is interrupted when it takes too long or the stream ends.
   *
   * @param arguments the arguments, as the model wrote them; numbers keep all their digits
   * @return the output: a text as it is, a {@link com.google.gson.JsonElement}, or anything else
   *     that Gson can write (records, maps, lists, numbers), as JSON
   * @throws ToolException to tell the model why the call failed
   * @throws Exception anything else: the model is told the name of its class
   */
  Object call(JsonObject arguments) throws Exception;
}
