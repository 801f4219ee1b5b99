// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.Strictness;
import com.google.gson.stream.JsonReader;
import com.google.gson.stream.JsonToken;
import java.io.IOException;
import java.io.StringReader;

/** Arguments and results of tools as JSON. */
final class Json {
  private static final Gson GSON =
      new GsonBuilder().serializeNulls().disableHtmlEscaping().create();

  private Json() {}

  /**
   * The object that the model wrote as arguments; no text is an empty one. Throws ToolException for
   * all else.
   */
  static JsonObject arguments(String text) throws ToolException {
    JsonElement parsed = text.isBlank() ? new JsonObject() : parse(text);
    if (!parsed.isJsonObject()) {
      throw new ToolException("the arguments are not a JSON object");
    }
    return parsed.getAsJsonObject();
  }

  /** A result as the model gets to see it. */
  static String output(Object result) throws ToolException {
    if (result instanceof String text) {
      return text;
    }
    try {
      return GSON.toJson(result);
    } catch (RuntimeException | StackOverflowError unwritable) {
      throw new ToolException("the tool's result cannot be written as JSON");
    }
  }

  private static JsonElement parse(String text) throws ToolException {
    try (JsonReader reader = new JsonReader(new StringReader(text))) {
      reader.setStrictness(Strictness.STRICT); // JsonParser accepts much that is no JSON
      JsonElement parsed = GSON.getAdapter(JsonElement.class).read(reader);
      if (reader.peek() == JsonToken.END_DOCUMENT) {
        return parsed;
      }
    } catch (IOException
        | JsonParseException
        | IllegalStateException
        | NumberFormatException wrong) {
      // told below
    }
    throw new ToolException("the arguments are not JSON");
  }
}
