// SPDX-License-Identifier: Apache-2.0

// Command private-registry serves the registry of CNCF Distribution, with accounts (htpasswd), TLS and a folder.
//
//	private-registry config.yml
//
// Its own command also has the storage of three clouds, which takes most of the build.
package main

import (
	"context"
	"log"
	"os"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

func serve(file string) error {
	content, err := os.Open(file)
	if err != nil {
		return err
	}
	defer content.Close()
	settings, err := configuration.Parse(content)
	if err != nil {
		return err
	}
	server, err := registry.NewRegistry(context.Background(), settings)
	if err != nil {
		return err
	}
	return server.ListenAndServe()
}

func main() {
	log.Fatal(serve(os.Args[1]))
}
