// Command vpcproxy-cni is a chained CNI plugin that binds pods to their
// attachments before they start.
package main

import (
	"github.com/vpcproxy/vpcproxy/internal/cni"
	"github.com/vpcproxy/vpcproxy/internal/version"
)

func main() { cni.Main(version.Version) }
