// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// No code at all: the connection, not the call.
const noCode = -1

type connection struct {
	socket *net.UnixConn
	client *ttrpc.Client
}

type caller struct {
	out         sync.Mutex
	connections map[string]connection
	cancels     map[string]context.CancelFunc
}

func (c *caller) say(words ...string) {
	c.out.Lock()
	defer c.out.Unlock()
	fmt.Println(strings.Join(words, "\t"))
}

func (c *caller) done(id string, err error, payload, details []byte) {
	code, text := 0, ""
	if err != nil {
		code, text = noCode, err.Error()
		if s, ok := status.FromError(err); ok {
			code, text = int(s.Code()), s.Message()
		} else if errors.Is(err, context.Canceled) {
			code = 1
		} else if errors.Is(err, context.DeadlineExceeded) {
			code = 4
		}
	}
	c.say("done", id, strconv.Itoa(code), hex.EncodeToString([]byte(text)),
		hex.EncodeToString(payload), hex.EncodeToString(details))
}

// rawKey: the payload of a call that goes past the library's marshaller, and where the answer's goes.
type rawKey struct{}

type raw struct{ in, out []byte }

func intercept(ctx context.Context, req *ttrpc.Request, reply *ttrpc.Response,
	_ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	r := ctx.Value(rawKey{}).(*raw)
	req.Payload = r.in
	err := invoke(ctx, req, reply)
	r.out, reply.Payload = reply.Payload, nil
	return err
}

func (c *caller) dial(name, path string) {
	socket, err := net.Dial("unix", path)
	if err != nil {
		c.say("failed", name, hex.EncodeToString([]byte(err.Error())))
		return
	}
	client := ttrpc.NewClient(socket, ttrpc.WithUnaryClientInterceptor(intercept))
	c.connections[name] = connection{socket.(*net.UnixConn), client}
	c.say("dialled", name)
}

func (c *caller) context(id string, timeout int64, meta string) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	if timeout != 0 {
		ctx, cancel = context.WithTimeout(context.Background(), time.Duration(timeout))
	}
	c.cancels[id] = cancel
	md := ttrpc.MD{}
	for _, pair := range strings.FieldsFunc(meta, func(r rune) bool { return r == '&' }) {
		key, value, _ := strings.Cut(pair, "=")
		md.Append(key, value)
	}
	return ttrpc.WithMetadata(ctx, md)
}

func (c *caller) call(id, name, service, method, timeout, payload, meta string) {
	r := &raw{}
	r.in, _ = hex.DecodeString(payload)
	ns, _ := strconv.ParseInt(timeout, 10, 64)
	ctx := context.WithValue(c.context(id, ns, meta), rawKey{}, r)
	client := c.connections[name].client
	go func() {
		err := client.Call(ctx, service, method, &emptypb.Empty{}, &emptypb.Empty{})
		var details []byte
		if s, ok := status.FromError(err); ok && err != nil {
			for _, d := range s.Proto().Details {
				details = append(details, d.Value...)
			}
		}
		c.done(id, err, r.out, details)
	}()
}

// stream sends the payload as so many messages, and expects each back.
func (c *caller) stream(id string, client *ttrpc.Client, service, method, count, payload string) {
	var in emptypb.Empty
	data, _ := hex.DecodeString(payload)
	if err := proto.Unmarshal(data, &in); err != nil {
		c.done(id, err, nil, nil)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := client.NewStream(ctx,
		&ttrpc.StreamDesc{StreamingClient: true, StreamingServer: true}, service, method, nil)
	n, _ := strconv.Atoi(count)
	back := 0
	for i := 0; i < n && err == nil; i++ {
		if err = s.SendMsg(&in); err == nil {
			var out emptypb.Empty
			if err = s.RecvMsg(&out); err == nil && proto.Equal(&in, &out) {
				back++
			}
		}
	}
	if err == nil {
		err = s.CloseSend()
	}
	if err == nil {
		if err = s.RecvMsg(&emptypb.Empty{}); err == io.EOF {
			err = nil
		}
	}
	c.done(id, err, []byte(strconv.Itoa(back)), nil)
}

func (c *caller) obeyLine(words []string) {
	switch words[0] {
	case "dial":
		c.dial(words[1], words[2])
	case "call":
		c.call(words[1], words[2], words[3], words[4], words[5], words[6], words[7])
	case "stream":
		go c.stream(words[1], c.connections[words[2]].client, words[3], words[4], words[5], words[6])
	case "cancel":
		c.cancels[words[1]]()
	case "half":
		_ = c.connections[words[1]].socket.CloseWrite()
	case "close":
		_ = c.connections[words[1]].client.Close()
	default:
		fmt.Fprintln(os.Stderr, "unknown word:", words[0])
		os.Exit(2)
	}
}

func obey(in io.Reader) {
	c := &caller{connections: map[string]connection{}, cancels: map[string]context.CancelFunc{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 32<<20)
	for lines.Scan() {
		c.obeyLine(strings.Split(lines.Text(), "\t"))
	}
}
