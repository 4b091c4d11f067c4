// SPDX-License-Identifier: Apache-2.0

// The Go library's verdict on ttrpc messages, for the fuzz target wire_gottrpc: on stdin a length of four bytes (host
// order), a byte of kind (0 Request, 1 Response, 2 a stream of frames), the message; on stdout a length and, when it decoded, what is in it.
// An empty answer means that it did not.
package main

import (
	"bufio"
	"encoding/binary"
	"io"
	"log"
	"os"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

type answer []byte

func (a *answer) text(b []byte) {
	*a = binary.NativeEndian.AppendUint32(*a, uint32(len(b)))
	*a = append(*a, b...)
}

func (a *answer) number(n int64) {
	*a = binary.NativeEndian.AppendUint64(*a, uint64(n))
}

func judge(message []byte) answer {
	a := answer{1}
	if message[0] == 2 {
		return frames(message[1:])
	}
	if message[0] == 0 {
		var r ttrpc.Request
		if proto.Unmarshal(message[1:], &r) != nil {
			return nil
		}
		a.text([]byte(r.Service))
		a.text([]byte(r.Method))
		a.text(r.Payload)
		a.number(r.TimeoutNano)
		for _, pair := range r.Metadata {
			a.text([]byte(pair.Key))
			a.text([]byte(pair.Value))
		}
		return a
	}
	var r ttrpc.Response
	if proto.Unmarshal(message[1:], &r) != nil {
		return nil
	}
	a.number(int64(r.Status.GetCode()))
	a.text([]byte(r.Status.GetMessage()))
	for _, detail := range r.Status.GetDetails() {
		a.text([]byte(detail.GetTypeUrl()))
		a.text(detail.GetValue())
	}
	a.text(r.Payload)
	return a
}

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := bufio.NewWriterSize(os.Stdout, 1<<20)
	length := make([]byte, 4)
	for {
		if _, err := io.ReadFull(in, length); err != nil {
			return
		}
		message := make([]byte, binary.NativeEndian.Uint32(length))
		if _, err := io.ReadFull(in, message); err != nil || len(message) == 0 {
			log.Fatal("no message")
		}
		a := judge(message)
		if err := binary.Write(out, binary.NativeEndian, uint32(len(a))); err != nil {
			log.Fatal(err)
		}
		out.Write(a)
		if err := out.Flush(); err != nil {
			log.Fatal(err)
		}
	}
}
