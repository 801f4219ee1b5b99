package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// call makes a unary call as the generated stub of its method does.
func (r *runner) call(ctx context.Context, step step) error {
	request, response, err := messagesOf(step.Method, step.Request)
	if err != nil {
		return err
	}
	if step.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(step.Timeout)*time.Millisecond)
		defer cancel()
	}
	if err := r.client.Conn().Invoke(ctx, "/"+step.Method, request, response); err != nil {
		return r.write(line{"error": errorOf(err)})
	}
	serialized, err := proto.Marshal(response)
	if err != nil {
		return err
	}
	return r.write(line{"response": serialized})
}

// pages calls a List method until there is no next page.
func (r *runner) pages(ctx context.Context, step step) error {
	request, blank, err := messagesOf(step.Method, step.Request)
	if err != nil {
		return err
	}
	token := request.ProtoReflect().Descriptor().Fields().ByName("page_token")
	for {
		response := blank.ProtoReflect().New()
		if err := r.client.Conn().Invoke(ctx, "/"+step.Method, request, response.Interface()); err != nil {
			return r.write(line{"error": errorOf(err)})
		}
		if err := r.write(line{"page": idsOf(response)}); err != nil {
			return err
		}
		next := response.Get(response.Descriptor().Fields().ByName("next_page_token"))
		if next.String() == "" {
			return nil
		}
		request.ProtoReflect().Set(token, next)
	}
}

// messagesOf returns the request of a method, and an empty response.
func messagesOf(method string, serialized []byte) (request, response proto.Message, err error) {
	name := protoreflect.FullName(strings.ReplaceAll(method, "/", "."))
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, nil, err
	}
	descriptor, ok := found.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, nil, fmt.Errorf("%s is no method", method)
	}
	in, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.Input().FullName())
	if err != nil {
		return nil, nil, err
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.Output().FullName())
	if err != nil {
		return nil, nil, err
	}
	request, response = in.New().Interface(), out.New().Interface()
	return request, response, proto.Unmarshal(serialized, request)
}

// idsOf returns the ids of what a page lists: of its repeated field.
func idsOf(page protoreflect.Message) []string {
	ids := []string{}
	fields := page.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if !field.IsList() || field.Message() == nil || field.Message().Fields().ByName("id") == nil {
			continue
		}
		id, list := field.Message().Fields().ByName("id"), page.Get(field).List()
		for j := range list.Len() {
			ids = append(ids, list.Get(j).Message().Get(id).String())
		}
	}
	return ids
}
