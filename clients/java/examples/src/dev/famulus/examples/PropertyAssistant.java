// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus.examples;

import dev.famulus.FamulusClient;
import dev.famulus.FamulusException;
import dev.famulus.RunStream;
import dev.famulus.StreamOptions;
import dev.famulus.ToolHandler;
import dev.famulus.v1.Assistant;
import dev.famulus.v1.CreateRunRequest;
import dev.famulus.v1.EnsureAssistantRequest;
import dev.famulus.v1.FunctionCall;
import dev.famulus.v1.FunctionTool;
import dev.famulus.v1.Message;
import dev.famulus.v1.MessagePart;
import dev.famulus.v1.MessageRole;
import dev.famulus.v1.Run;
import dev.famulus.v1.RunEvent;
import dev.famulus.v1.RunState;
import dev.famulus.v1.TextPart;
import dev.famulus.v1.Thread;
import dev.famulus.v1.Tool;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Path;
import java.util.Map;

/**
 * Answers a question about homes for sale: prints the answer as it grows, and the tools that are
 * called for it.
 */
final class PropertyAssistant {
  private static final String SEARCH_SCHEMA =
      """
      {"type": "object", "required": ["location"], "properties": {
        "location": {"type": "string", "description": "Town or quarter", "examples": ["Bern"]},
        "max_price": {"type": "number", "description": "In euros", "examples": [1000000]},
        "min_bedrooms": {"type": "integer"}}}""";

  private static final String DETAILS_SCHEMA =
      """
      {"type": "object", "required": ["property_id"], "properties": {"property_id": {"type": "string"}}}""";

  private PropertyAssistant() {}

  public static void main(String[] given) throws IOException {
    String target = given.length > 0 ? given[0] : "127.0.0.1:7461";
    String model = given.length > 1 ? given[1] : "scripted";
    String question =
        given.length > 2
            ? given[2]
            : "Call search_properties for homes with two bedrooms in Lisbon.";
    Properties properties = Properties.in(Path.of(System.getProperty("properties")));
    try (FamulusClient client = FamulusClient.builder(target).build()) {
      ask(client, model, question, properties);
    } catch (FamulusException | StatusRuntimeException error) {
      System.err.println(FamulusException.from(error).getMessage());
      System.exit(1);
    }
  }

  private static void ask(
      FamulusClient client, String model, String question, Properties properties) {
    Map<String, ToolHandler> tools =
        Map.of(
            "search_properties", properties::search, "get_property_details", properties::details);
    StreamOptions options = StreamOptions.defaults().withTools(tools).withCancelOnExit();
    try (RunStream stream = client.streamRun(create(assistant(client, model), question), options)) {
      for (RunEvent event : stream) {
        print(event, stream);
      }
      Run run = stream.view().result().run();
      System.out.printf("%n%s, %d tokens%n", run.getState(), run.getUsage().getTotalTokens());
      if (run.getState() == RunState.RUN_STATE_FAILED) {
        System.out.println(run.getError().getMessage());
      }
    }
  }

  private static void print(RunEvent event, RunStream stream) {
    switch (event.getEventCase()) {
      case TEXT_DELTA -> System.out.print(event.getTextDelta().getText());
      // What was printed before may not hold any more.
      case ATTEMPT_STARTED, SNAPSHOT -> System.out.print("\n" + stream.view().text());
      case TOOL_OUTPUT_RECEIVED ->
          event.getToolOutputReceived().getToolCallsList().stream()
              .map(call -> call.getFunction())
              .forEach(PropertyAssistant::print);
      default -> {}
    }
    System.out.flush();
  }

  private static void print(FunctionCall call) {
    System.out.printf("[%s %s -> %s]%n", call.getName(), call.getArgumentsJson(), call.getOutput());
  }

  private static String assistant(FamulusClient client, String model) {
    Assistant wanted =
        Assistant.newBuilder()
            .setName("Property assistant")
            .setModel(model)
            .setInstructions("Help to find a home. Use the tools; never invent a property.")
            .addTools(tool("search_properties", "Finds homes for sale.", SEARCH_SCHEMA))
            .addTools(tool("get_property_details", "All that is known of a home.", DETAILS_SCHEMA))
            .build();
    EnsureAssistantRequest request =
        EnsureAssistantRequest.newBuilder().setAssistant(wanted).build();
    return client.assistants().ensureAssistant(request).getAssistant().getId();
  }

  private static Tool.Builder tool(String name, String description, String schema) {
    return Tool.newBuilder()
        .setFunction(
            FunctionTool.newBuilder()
                .setName(name)
                .setDescription(description)
                .setParametersJson(schema));
  }

  private static CreateRunRequest create(String assistantId, String question) {
    TextPart text = TextPart.newBuilder().setText(question).build();
    return CreateRunRequest.newBuilder()
        .setNewThread(Thread.newBuilder().setUserId("user-1"))
        .setAssistantId(assistantId)
        .addAdditionalMessages(
            Message.newBuilder()
                .setRole(MessageRole.MESSAGE_ROLE_USER)
                .addContent(MessagePart.newBuilder().setText(text)))
        .build();
  }
}
