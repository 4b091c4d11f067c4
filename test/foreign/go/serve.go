// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const holdSize = 200

type unmarshaler = func(interface{}) error

var (
	cancelled atomic.Int64
	holdLock  sync.Mutex
	held      []chan struct{}
)

// echo: unknown fields are kept byte for byte.
func echo(_ context.Context, unmarshal unmarshaler) (interface{}, error) {
	var in emptypb.Empty
	return &in, unmarshal(&in)
}

func meta(ctx context.Context, _ unmarshaler) (interface{}, error) {
	var lines []string
	md, _ := ttrpc.GetMetadata(ctx)
	for key, values := range md {
		for _, value := range values {
			lines = append(lines, key+"="+value)
		}
	}
	sort.Strings(lines)
	timeout := int64(0)
	if end, ok := ctx.Deadline(); ok {
		timeout = time.Until(end).Nanoseconds()
	}
	lines = append(lines, fmt.Sprintf("timeout=%d", timeout))
	return wrapperspb.String(strings.Join(lines, "\n")), nil
}

// parse refuses what is no StringValue, as every generated handler does.
func parse(_ context.Context, unmarshal unmarshaler) (interface{}, error) {
	var in wrapperspb.StringValue
	return &in, unmarshal(&in)
}

// fail answers with the code and the text that it is told: "CODE TEXT".
func fail(_ context.Context, unmarshal unmarshaler) (interface{}, error) {
	var in wrapperspb.StringValue
	if err := unmarshal(&in); err != nil {
		return nil, err
	}
	code, text, _ := strings.Cut(in.Value, " ")
	n, _ := strconv.Atoi(code)
	detail := &anypb.Any{TypeUrl: "test/detail", Value: []byte("of " + text)}
	return nil, status.ErrorProto(&spb.Status{Code: int32(n), Message: text,
		Details: []*anypb.Any{detail}})
}

// hold answers when 200 calls are there, the last first.
func hold(ctx context.Context, unmarshal unmarshaler) (interface{}, error) {
	var in emptypb.Empty
	if err := unmarshal(&in); err != nil {
		return nil, err
	}
	mine := make(chan struct{})
	holdLock.Lock()
	held = append(held, mine)
	if len(held) == holdSize {
		for i := len(held) - 1; i >= 0; i-- {
			close(held[i])
		}
		held = nil
	}
	holdLock.Unlock()
	select {
	case <-mine:
		return &in, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func never(ctx context.Context, _ unmarshaler) (interface{}, error) {
	<-ctx.Done()
	if ctx.Err() == context.Canceled {
		cancelled.Add(1)
	}
	return nil, ctx.Err()
}

func countCancelled(context.Context, unmarshaler) (interface{}, error) {
	return wrapperspb.String(strconv.FormatInt(cancelled.Load(), 10)), nil
}

func check(context.Context, unmarshaler) (interface{}, error) { return &emptypb.Empty{}, nil }

func echoStream(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	for {
		var in emptypb.Empty
		if err := stream.RecvMsg(&in); err == io.EOF {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if err := stream.SendMsg(&in); err != nil {
			return nil, err
		}
	}
}

func serve(path string) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		log.Fatal(err)
	}
	server.RegisterService("grpc.AgentService", &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{"Echo": echo, "Meta": meta, "Parse": parse, "Fail": fail,
			"Hold": hold, "Never": never, "Cancelled": countCancelled, "CreateSandbox": echo,
			"CreateContainer": echo},
		Streams: map[string]ttrpc.Stream{"EchoStream": {Handler: echoStream, StreamingClient: true,
			StreamingServer: true}}})
	server.Register("grpc.Health", map[string]ttrpc.Method{"Check": check})
	log.Fatal(server.Serve(context.Background(), l))
}
