// SPDX-License-Identifier: Apache-2.0

// kstatus prints the status of Kubernetes objects as the library kstatus computes it for Flux and Helm.
//
//	kstatus < objects.jsonl
//
// It reads objects as JSON from standard input and prints for each one a line with its status (Current,
// InProgress, Failed or Terminating) and message, as JSON.
package main

import (
	"encoding/json"
	"io"
	"log"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type verdict struct {
	Status  status.Status `json:"status"`
	Message string        `json:"message"`
}

func judge(manifest []byte) (verdict, error) {
	// Its own decoder, because kstatus expects integers as int64.
	var object unstructured.Unstructured
	if err := object.UnmarshalJSON(manifest); err != nil {
		return verdict{}, err
	}
	result, err := status.Compute(&object)
	if err != nil {
		return verdict{}, err
	}
	return verdict{result.Status, result.Message}, nil
}

func main() {
	log.SetFlags(0)
	objects, verdicts := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var object json.RawMessage
		if err := objects.Decode(&object); err == io.EOF {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		found, err := judge(object)
		if err != nil {
			log.Fatal(err)
		}
		if err := verdicts.Encode(found); err != nil {
			log.Fatal(err)
		}
	}
}
