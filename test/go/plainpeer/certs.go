// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

type recipe struct {
	name, commonName string
	dns              []string
	usage            []x509.ExtKeyUsage
	keyUsage         x509.KeyUsage
	ca               bool
	days             int // of validity from now on; negative: it ended so long ago
	issuer           *pair
	chain            []*pair                 // also in the file
	key              crypto.Signer           // nil: a new one, P-256
	change           func(*x509.Certificate) // whatever else is different
	spoil            bool                    // the signature is wrong
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func (r recipe) make(dir string) *pair {
	now := time.Now()
	if r.commonName == "" {
		// OpenSSL takes a certificate whose subject is its issuer's for self-signed
		r.commonName = r.name
	}
	t := &x509.Certificate{
		SerialNumber:          must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))),
		Subject:               pkix.Name{Organization: []string{"plainpeer"}, CommonName: r.commonName},
		NotBefore:             now.Add(-24 * 400 * time.Hour),
		NotAfter:              now.Add(time.Duration(r.days) * 24 * time.Hour),
		KeyUsage:              r.keyUsage,
		ExtKeyUsage:           r.usage,
		DNSNames:              r.dns,
		IsCA:                  r.ca,
		BasicConstraintsValid: true,
	}
	if r.change != nil {
		r.change(t)
	}
	key := r.key
	if key == nil {
		key = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	}
	parent, signer := t, key
	if r.issuer != nil {
		parent, signer = r.issuer.cert, r.issuer.key
	}
	der := must(x509.CreateCertificate(rand.Reader, t, parent, key.Public(), signer))
	if r.spoil {
		der[len(der)-1] ^= 1
	}
	p := &pair{cert: must(x509.ParseCertificate(der)), key: key}
	p.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for _, c := range r.chain {
		p.pem = append(p.pem, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})...)
	}
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY",
		Bytes: must(x509.MarshalPKCS8PrivateKey(key))})
	if err := os.WriteFile(filepath.Join(dir, r.name+".crt"), p.pem, 0o600); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, r.name+".key"), secret, 0o600); err != nil {
		log.Fatal(err)
	}
	return p
}

// parseBundle takes what Go's AppendCertsFromPEM takes: what is no certificate is left out.
func parseBundle(path string) []*x509.Certificate {
	var all []*x509.Certificate
	for data := must(os.ReadFile(path)); ; {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return all
		}
		if c, err := x509.ParseCertificate(block.Bytes); block.Type == "CERTIFICATE" && err == nil {
			all = append(all, c)
		}
	}
}

// verify says of each certificate, in a line, what Go's verifier says.
func verify(ca, name string, certs []string) {
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), DNSName: name,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if name == "" {
		options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	options.Roots.AppendCertsFromPEM(must(os.ReadFile(ca)))
	for _, cert := range certs {
		chain := parseBundle(cert)
		options.Intermediates = x509.NewCertPool()
		for _, c := range chain[1:] {
			options.Intermediates.AddCert(c)
		}
		verdict := "taken"
		if _, err := chain[0].Verify(options); err != nil {
			verdict = "refused: " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Println(verdict)
	}
}

// extension is one that nobody knows.
func extension(critical bool) []pkix.Extension {
	return []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1},
		Critical: critical, Value: []byte{5, 0}}}
}

// certs writes NAME.crt and NAME.key: what an installation with custom certificates has, and what
// it must not get away with.
func certs(dir string) {
	server := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	name := []string{"podvm-server"}
	sign, odd := x509.KeyUsageDigitalSignature, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	ca := recipe{name: "ca", ca: true, keyUsage: odd, days: 30}.make(dir)
	other := recipe{name: "other-ca", ca: true, keyUsage: odd, days: 30}.make(dir)
	middle := recipe{name: "middle", commonName: "middle", ca: true, keyUsage: odd, days: 30,
		issuer: ca}.make(dir)
	oldCA := recipe{name: "expired-ca", ca: true, keyUsage: odd, days: -1}.make(dir)
	for _, r := range []recipe{
		{name: "server", dns: name, usage: server, keyUsage: odd, days: 30, issuer: ca},
		{name: "client", usage: client, keyUsage: odd, days: 30, issuer: ca},
		// the adaptor's own kind: self-signed, certSign without being an authority, its own anchor
		{name: "self", usage: client, keyUsage: odd, days: 30},
		{name: "chained", dns: name, usage: server, keyUsage: sign, days: 30, issuer: middle,
			chain: []*pair{middle}},
		{name: "unchained", dns: name, usage: server, keyUsage: sign, days: 30, issuer: middle},
		{name: "any-usage", dns: name, usage: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
			keyUsage: sign, days: 30, issuer: ca},
		{name: "no-usage", dns: name, days: 30, issuer: ca},
		{name: "odd-key-usage", dns: name, usage: server,
			keyUsage: x509.KeyUsageKeyEncipherment, days: 30, issuer: ca},
		{name: "wildcard", dns: []string{"*"}, usage: server, keyUsage: sign, days: 30, issuer: ca},
		{name: "wrong-name", dns: []string{"podvm-other"}, usage: server, keyUsage: sign, days: 30,
			issuer: ca},
		{name: "common-name", commonName: "podvm-server", usage: server, keyUsage: sign, days: 30,
			issuer: ca},
		{name: "expired", dns: name, usage: server, keyUsage: sign, days: -1, issuer: ca},
		{name: "expired-issuer", dns: name, usage: server, keyUsage: sign, days: 30, issuer: oldCA},
		{name: "wrong-usage", dns: name, usage: client, keyUsage: sign, days: 30, issuer: ca},
		{name: "other", dns: name, usage: server, keyUsage: sign, days: 30, issuer: other},
		{name: "leaf-issuer", dns: name, usage: server, keyUsage: sign, days: 30,
			issuer: recipe{name: "no-ca", dns: name, keyUsage: sign, days: 30}.make(dir)},
		{name: "expired-client", usage: client, keyUsage: sign, days: -1, issuer: ca},
		{name: "other-client", usage: client, keyUsage: sign, days: 30, issuer: other},
		{name: "server-as-client", dns: name, usage: server, keyUsage: sign, days: 30, issuer: ca},
		{name: "rsa-client", usage: client, keyUsage: sign, days: 30, issuer: ca,
			key: must(rsa.GenerateKey(rand.Reader, 2048))},
		{name: "critical-client", usage: client, keyUsage: sign, days: 30, issuer: ca,
			change: func(t *x509.Certificate) { t.ExtraExtensions = extension(true) }},
	} {
		r.make(dir)
	}
	servers(dir, ca, middle, recipe{dns: name, usage: server, keyUsage: sign, days: 30, issuer: ca})
}

// servers: more of those that differ from a usual one in one point.
func servers(dir string, ca, middle *pair, usual recipe) {
	authority := func(name string, issuer *pair, change func(*x509.Certificate)) *pair {
		return recipe{name: name, ca: true, keyUsage: x509.KeyUsageCertSign, days: 30,
			issuer: issuer, change: change}.make(dir)
	}
	from := func(name string, chain ...*pair) {
		r := usual
		r.name, r.issuer, r.chain = name, chain[0], chain
		r.make(dir)
	}
	but := func(name string, change func(*x509.Certificate)) {
		r := usual
		r.name, r.change = name, change
		r.make(dir)
	}
	with := func(name string, key crypto.Signer) {
		r := usual
		r.name, r.key = name, key
		r.make(dir)
	}
	const day = 24 * time.Hour
	but("future", func(t *x509.Certificate) { t.NotBefore = time.Now().Add(day) })
	but("critical", func(t *x509.Certificate) { t.ExtraExtensions = extension(true) })
	but("not-critical", func(t *x509.Certificate) { t.ExtraExtensions = extension(false) })
	but("upper-case", func(t *x509.Certificate) { t.DNSNames = []string{"PodVM-Server"} })
	but("second-name", func(t *x509.Certificate) { t.DNSNames = []string{"a.example", "podvm-server"} })
	but("sub-domain", func(t *x509.Certificate) { t.DNSNames = []string{"podvm-server.example"} })
	but("address", func(t *x509.Certificate) {
		t.DNSNames, t.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)}
	})
	but("mail-usage", func(t *x509.Certificate) {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}
	})
	but("both-usages", func(t *x509.Certificate) {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	})
	but("unknown-usage", func(t *x509.Certificate) {
		t.ExtKeyUsage, t.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 99999, 2}}
	})
	with("rsa", must(rsa.GenerateKey(rand.Reader, 2048)))
	with("p384", must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)))
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	with("ed25519", ed)
	spoilt := usual
	spoilt.name, spoilt.spoil = "spoilt", true
	spoilt.make(dir)

	from("permitted", authority("permits", ca, func(t *x509.Certificate) {
		t.PermittedDNSDomains, t.PermittedDNSDomainsCritical = []string{"podvm-server"}, true
	}))
	from("not-permitted", authority("permits-another", ca, func(t *x509.Certificate) {
		t.PermittedDNSDomains, t.PermittedDNSDomainsCritical = []string{"example.com"}, true
	}))
	from("excluded", authority("excludes", ca, func(t *x509.Certificate) {
		t.ExcludedDNSDomains = []string{"podvm-server"}
	}))
	from("not-excluded", authority("excludes-another", ca, func(t *x509.Certificate) {
		t.ExcludedDNSDomains = []string{"example.com"}
	}))
	from("critical-issuer", authority("critical-ca", ca, func(t *x509.Certificate) {
		t.ExtraExtensions = extension(true)
	}))
	from("client-issuer", authority("client-ca", ca, func(t *x509.Certificate) {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}))
	from("server-issuer", authority("server-ca", ca, func(t *x509.Certificate) {
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}))
	from("no-sign-issuer", authority("no-sign-ca", ca, func(t *x509.Certificate) {
		t.KeyUsage = x509.KeyUsageDigitalSignature
	}))
	from("any-key-usage-issuer", authority("any-key-usage-ca", ca, func(t *x509.Certificate) {
		t.KeyUsage = 0
	}))
	from("no-basic-issuer", authority("no-basic-ca", ca, func(t *x509.Certificate) {
		t.IsCA, t.BasicConstraintsValid = false, false
	}))
	future := authority("future-ca", ca, func(t *x509.Certificate) { t.NotBefore = time.Now().Add(day) })
	from("future-issuer", future)
	last := authority("last-ca", ca, func(t *x509.Certificate) { t.MaxPathLen, t.MaxPathLenZero = 0, true })
	from("last", last)
	from("too-long", authority("too-long-ca", last, nil), last)
	from("reversed", middle, ca)
	deep := authority("deep-ca", middle, nil)
	from("deep", deep, middle)
	from("gap", deep)                             // the one between is missing
	from("crowd", deep, future, last, middle, ca) // some that are no use, in any order

	// the same name and key again, and the same name with another key
	again := func(name string, key crypto.Signer, days int) *pair {
		return recipe{name: name, commonName: "renewed-ca", ca: true, keyUsage: x509.KeyUsageCertSign,
			days: days, issuer: ca, key: key}.make(dir)
	}
	old := again("renewed-old", nil, -1)
	renewed := again("renewed-new", old.key, 30)
	another := again("renewed-another", nil, 30)
	from("renewed", renewed, old)
	from("renewed-behind", old, renewed)
	from("not-renewed", old)
	from("other-key-behind", renewed, another)
}
