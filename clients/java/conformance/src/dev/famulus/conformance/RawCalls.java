// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus.conformance;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.PrototypeMarshaller;
import io.grpc.ServiceDescriptor;
import io.grpc.stub.ClientCalls;
import java.io.ByteArrayInputStream;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/**
 * Unary calls of the stubs, by the names of their methods: {@code famulus.v1.RunService/GetRun}.
 */
final class RawCalls {
  private final Channel channel;

  RawCalls(Channel channel) {
    this.channel = channel;
  }

  /** Calls once; {@code timeout} is null where there is no deadline. */
  byte[] call(String name, byte[] request, Duration timeout) {
    MethodDescriptor<Message, Message> method = method(name);
    Message parsed = method.parseRequest(new ByteArrayInputStream(request));
    return call(method, parsed, timeout).toByteArray();
  }

  /** Calls until there is no further page; gives the ids of each page. */
  void pages(String name, byte[] first, Consumer<List<String>> page)
      throws InvalidProtocolBufferException {
    MethodDescriptor<Message, Message> method = method(name);
    Message request = prototype(method.getRequestMarshaller()).getParserForType().parseFrom(first);
    String token;
    do {
      Message response = call(method, request, null);
      page.accept(ids(response));
      token = (String) response.getField(field(response, "next_page_token"));
      request = request.toBuilder().setField(field(request, "page_token"), token).build();
    } while (!token.isEmpty());
  }

  private Message call(
      MethodDescriptor<Message, Message> method, Message request, Duration timeout) {
    CallOptions options =
        timeout == null
            ? CallOptions.DEFAULT
            : CallOptions.DEFAULT.withDeadlineAfter(timeout.toMillis(), TimeUnit.MILLISECONDS);
    return ClientCalls.blockingUnaryCall(channel, method, options, request);
  }

  private static List<String> ids(Message response) {
    List<String> ids = new ArrayList<>();
    for (FieldDescriptor items : response.getDescriptorForType().getFields()) {
      if (items.isRepeated()) {
        for (Object item : (List<?>) response.getField(items)) {
          ids.add((String) ((Message) item).getField(field((Message) item, "id")));
        }
      }
    }
    return ids;
  }

  private static FieldDescriptor field(Message message, String name) {
    return message.getDescriptorForType().findFieldByName(name);
  }

  private static Message prototype(MethodDescriptor.Marshaller<Message> marshaller) {
    return ((PrototypeMarshaller<Message>) marshaller).getMessagePrototype();
  }

  @SuppressWarnings("unchecked") // all messages of the stubs are Messages
  private static MethodDescriptor<Message, Message> method(String name) {
    String service = MethodDescriptor.extractFullServiceName(name);
    try {
      Class<?> stubs = Class.forName("dev." + service + "Grpc");
      ServiceDescriptor described =
          (ServiceDescriptor) stubs.getMethod("getServiceDescriptor").invoke(null);
      for (MethodDescriptor<?, ?> method : described.getMethods()) {
        if (method.getFullMethodName().equals(name)) {
          return (MethodDescriptor<Message, Message>) method;
        }
      }
    } catch (ReflectiveOperationException missing) {
      throw new IllegalArgumentException("there is no service " + service, missing);
    }
    throw new IllegalArgumentException("there is no method " + name);
  }
}
