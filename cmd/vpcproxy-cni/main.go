// Command vpcproxy-cni is a chained CNI plugin that binds pods to their
// attachments before they start. "vpcproxy-cni install DIRECTORY" copies it to
// where a container runtime looks for plugins.
package main

import (
	"fmt"
	"os"

	"github.com/vpcproxy/vpcproxy/internal/cni"
	"github.com/vpcproxy/vpcproxy/internal/version"
)

func main() {
	if len(os.Args) == 1 {
		cni.Main(version.Version)
		return
	}
	if len(os.Args) != 3 || os.Args[1] != "install" {
		fmt.Fprintln(os.Stderr, "usage: vpcproxy-cni                       as a container runtime calls it\n       vpcproxy-cni install DIRECTORY     e.g. /opt/cni/bin")
		os.Exit(2)
	}
	if err := cni.Install(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "vpcproxy-cni:", err)
		os.Exit(1)
	}
}
