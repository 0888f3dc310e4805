// SPDX-License-Identifier: Apache-2.0

// The cluster's DNS server: CoreDNS with the plugins that templates/coredns.yaml names, and none of the clients of
// clouds and tracers that its own program links.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The order in which a query passes them, whatever their order in the Corefile.
	dnsserver.Directives = []string{"health", "ready", "errors", "template", "kubernetes"}
	coremain.Run()
}
