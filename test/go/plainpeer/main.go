// SPDX-License-Identifier: Apache-2.0

// plainpeer stands in for the stock (Go) programs in the tests of plain mode: it behaves towards the
// other side of port 15150 as compat.md and kata-contract.md 3.4 say they do, with Go's TLS, Go's
// verifier and the ttrpc library that they use.
//
//	plainpeer forwarder [flags]   in the pod VM: ends TLS, one agent connection, dialled once
//	plainpeer adaptor [flags]     on the worker: a unix socket for the shim, TLS to a forwarder
//	plainpeer certs DIR           certificates, good ones and bad ones
//	plainpeer verify CA NAME CERT... what Go's verifier says, a line for each: of a server of that
//	                              name, or, when NAME is empty, of a client
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

type options struct {
	config, listen, agent, socket, address, serverName string
	ca, cert, key, minVersion, suites, seen            string
	skipVerify, disableTLS                             bool
	late, slow                                         time.Duration
}

func parse(args []string) options {
	var o options
	f := flag.NewFlagSet("plainpeer", flag.ExitOnError)
	f.StringVar(&o.config, "config", "/run/peerpod/apf.json", "")
	f.StringVar(&o.listen, "listen", "0.0.0.0:15150", "")
	f.StringVar(&o.agent, "kata-agent-socket", "/run/kata-containers/agent.sock", "")
	f.StringVar(&o.ca, "ca-cert-file", "", "")
	f.StringVar(&o.cert, "cert-file", "", "")
	f.StringVar(&o.key, "cert-key", "", "")
	f.StringVar(&o.minVersion, "tls-min-version", "", "")
	f.StringVar(&o.suites, "tls-cipher-suites", "", "")
	f.BoolVar(&o.skipVerify, "tls-skip-verify", false, "")
	f.BoolVar(&o.disableTLS, "disable-tls", false, "")
	// of the stand-in alone
	f.StringVar(&o.socket, "socket", "", "adaptor: for the shim")
	f.StringVar(&o.address, "address", "", "adaptor: of the forwarder")
	f.StringVar(&o.serverName, "server-name", "podvm-server", "adaptor: expected")
	f.StringVar(&o.seen, "seen", "/tmp/seen", "directory for the requests that came, when it exists")
	f.DurationVar(&o.late, "late", 0, "listen so much later")
	f.DurationVar(&o.slow, "slow", 0, "begin each handshake so much later")
	if err := f.Parse(args); err != nil {
		log.Fatal(err)
	}
	return o
}

func read(path string, fallback string) []byte {
	if path == "" {
		return []byte(fallback)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	return data
}

func tlsConfig(o options, ca, cert, key []byte) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.skipVerify}
	if o.minVersion == "VersionTLS13" {
		c.MinVersion = tls.VersionTLS13
	}
	for _, name := range strings.FieldsFunc(o.suites, func(r rune) bool { return r == ',' }) {
		for _, s := range tls.CipherSuites() {
			if s.Name == name {
				c.CipherSuites = append(c.CipherSuites, s.ID)
				c.MaxVersion = tls.VersionTLS12
			}
		}
	}
	if len(ca) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(ca) {
			log.Fatal("no certificate in the CA")
		}
		c.RootCAs, c.ClientCAs, c.ClientAuth = pool, pool, tls.RequireAndVerifyClientCert
	}
	if len(cert) > 0 {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			log.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c
}

// redirector carries calls to one ttrpc connection that is dialled once in its life.
type redirector struct {
	dial func(context.Context) (net.Conn, error)
	seen string
	once sync.Once
	c    *ttrpc.Client
}

func (r *redirector) connect(ctx context.Context) error {
	var err error
	r.once.Do(func() {
		conn, e := r.dial(ctx)
		if e != nil {
			err = e
			return
		}
		r.c = ttrpc.NewClient(conn)
	})
	if err == nil && r.c == nil {
		err = errors.New("agent connection is not established")
	}
	return err
}

func (r *redirector) call(service, method string) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(interface{}) error) (interface{}, error) {
		var in, out emptypb.Empty // unknown fields are kept, byte for byte
		if err := unmarshal(&in); err != nil {
			return nil, err
		}
		if err := r.connect(ctx); err != nil {
			return nil, err
		}
		if data, err := proto.Marshal(&in); err == nil && method == "CreateContainer" {
			_ = os.WriteFile(filepath.Join(r.seen, method), data, 0o600)
		}
		return &out, r.c.Call(ctx, service, method, &in, &out)
	}
}

var methods = map[string][]string{
	"grpc.AgentService": {"CreateContainer", "StartContainer", "RemoveContainer", "ExecProcess",
		"SignalProcess", "WaitProcess", "WriteStdin", "ReadStdout", "ReadStderr", "CloseStdin",
		"TtyWinResize", "CreateSandbox", "DestroySandbox", "CopyFile", "GetOOMEvent", "SetPolicy",
		"GetGuestDetails", "StatsContainer", "Echo"},
	"grpc.Health": {"Check", "Version"},
}

func serve(l net.Listener, r *redirector) {
	server, err := ttrpc.NewServer()
	if err != nil {
		log.Fatal(err)
	}
	for service, names := range methods {
		table := map[string]ttrpc.Method{}
		for _, name := range names {
			table[name] = r.call(service, name)
		}
		server.Register(service, table)
	}
	log.Fatal(server.Serve(context.Background(), l))
}

// slowListener sleeps in each accepted connection's first read, where Go does the handshake.
type slowListener struct {
	net.Listener
	delay time.Duration
}

type slowConn struct {
	net.Conn
	once  sync.Once
	delay time.Duration
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &slowConn{Conn: c, delay: l.delay}, err
}

func (c *slowConn) Read(b []byte) (int, error) {
	c.once.Do(func() { time.Sleep(c.delay) })
	return c.Conn.Read(b)
}

func forwarder(o options) {
	var apf struct {
		Key      string   `json:"tls-server-key"`
		Cert     string   `json:"tls-server-cert"`
		ClientCA string   `json:"tls-client-ca"`
		Min      string   `json:"tls-min-version"`
		Suites   []string `json:"tls-cipher-suites"`
	}
	if err := json.Unmarshal(read(o.config, ""), &apf); err != nil {
		log.Fatal(err)
	}
	if o.minVersion == "" {
		o.minVersion = apf.Min
	}
	if o.suites == "" {
		o.suites = strings.Join(apf.Suites, ",")
	}
	time.Sleep(o.late)
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		log.Fatal(err)
	}
	if o.slow > 0 {
		l = slowListener{l, o.slow}
	}
	if !o.disableTLS {
		l = tls.NewListener(l, tlsConfig(o, read(o.ca, apf.ClientCA), read(o.cert, apf.Cert),
			read(o.key, apf.Key)))
	}
	log.Print("plainpeer: listening as a stock forwarder")
	serve(l, &redirector{seen: o.seen, dial: func(ctx context.Context) (net.Conn, error) {
		for {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", o.agent)
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			time.Sleep(100 * time.Millisecond)
		}
	}})
}

func adaptor(o options) {
	dial := func(ctx context.Context) (net.Conn, error) {
		if o.disableTLS {
			return (&net.Dialer{}).DialContext(ctx, "tcp", o.address)
		}
		c := tlsConfig(o, read(o.ca, ""), read(o.cert, ""), read(o.key, ""))
		c.ServerName = o.serverName
		return (&tls.Dialer{Config: c}).DialContext(ctx, "tcp", o.address)
	}
	r := &redirector{seen: o.seen}
	r.dial = func(ctx context.Context) (net.Conn, error) {
		for {
			conn, err := dial(ctx)
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			log.Printf("plainpeer: dialling again: %v", err)
			time.Sleep(100 * time.Millisecond)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.connect(ctx); err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", o.socket)
	if err != nil {
		log.Fatal(err)
	}
	log.Print("plainpeer: connected as a stock adaptor")
	serve(l, r)
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: plainpeer forwarder|adaptor|certs ...")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "forwarder":
		forwarder(parse(os.Args[2:]))
	case "adaptor":
		adaptor(parse(os.Args[2:]))
	case "certs":
		certs(os.Args[2])
	case "verify":
		verify(os.Args[2], os.Args[3], os.Args[4:])
	default:
		os.Exit(2)
	}
}
