// SPDX-License-Identifier: Apache-2.0

// foreign-go is containerd's own ttrpc library on either side of ours: an agent whose answers a test
// can foretell (foreign-go serve SOCKET), and a client that does what it is told on standard input
// (foreign-go call). The words are described in test/chain/foreign.py, and are the same in Rust.
package main

import (
	"fmt"
	"os"
)

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		serve(os.Args[2])
	case len(os.Args) == 2 && os.Args[1] == "call":
		obey(os.Stdin)
	default:
		fmt.Fprintln(os.Stderr, "usage: foreign-go serve SOCKET | call")
		os.Exit(2)
	}
}
