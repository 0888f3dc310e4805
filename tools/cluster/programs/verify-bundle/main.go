// SPDX-License-Identifier: Apache-2.0

// Command verify-bundle verifies a Sigstore bundle with a public key, and prints the in-toto statement in it.
//
// A release that is signed with a key has neither certificates nor timestamps, which the command of sigstore-go
// requires.
package main

import (
	"crypto"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"google.golang.org/protobuf/encoding/protojson"
)

// anyTime accepts signatures of any time, because a key has no validity period.
type anyTime struct{ signature.Verifier }

func (anyTime) ValidAtTime(time.Time) bool { return true }

func statement(keyFile, digest, bundleFile string) ([]byte, error) {
	pem, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	key, err := cryptoutils.UnmarshalPEMToPublicKey(pem)
	if err != nil {
		return nil, err
	}
	trusted := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) {
		verifier, err := signature.LoadVerifier(key, crypto.SHA256)
		return anyTime{verifier}, err
	})
	verifier, err := verify.NewVerifier(trusted, verify.WithNoObserverTimestamps())
	if err != nil {
		return nil, err
	}
	algorithm, encoded, _ := strings.Cut(digest, ":")
	subject, err := hex.DecodeString(encoded)
	if err != nil {
		return nil, err
	}
	signed, err := bundle.LoadJSONFromPath(bundleFile)
	if err != nil {
		return nil, err
	}
	policy := verify.NewPolicy(verify.WithArtifactDigest(algorithm, subject), verify.WithKey())
	result, err := verifier.Verify(signed, policy)
	if err != nil {
		return nil, err
	}
	return protojson.Marshal(result.Statement)
}

func main() {
	key := flag.String("key", "", "file with the public key in PEM form")
	digest := flag.String("digest", "", "digest of the artifact that the statement must be about, such as sha256:0123")
	flag.Parse()
	found, err := statement(*key, *digest, flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(found))
}
