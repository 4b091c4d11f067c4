// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
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
	chain            *pair // also in the file
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
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	parent, signer := t, key
	if r.issuer != nil {
		parent, signer = r.issuer.cert, r.issuer.key
	}
	der := must(x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, signer))
	p := &pair{cert: must(x509.ParseCertificate(der)), key: key}
	p.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if r.chain != nil {
		p.pem = append(p.pem, r.chain.pem...)
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

func parseBundle(path string) []*x509.Certificate {
	var all []*x509.Certificate
	for data := must(os.ReadFile(path)); ; {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return all
		}
		all = append(all, must(x509.ParseCertificate(block.Bytes)))
	}
}

func verify(ca, cert, name string) {
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		DNSName: name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if name == "" {
		options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for _, c := range parseBundle(ca) {
		options.Roots.AddCert(c)
	}
	chain := parseBundle(cert)
	for _, c := range chain[1:] {
		options.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(options); err != nil {
		log.Fatalf("refused: %v", err)
	}
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
			chain: middle},
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
	} {
		r.make(dir)
	}
}
