package diagnose

import (
	"fmt"
	"time"
)

var (
	codeExpired = Code{"certificate-expired", Error, "the node's certificate has expired",
		"The controller refuses this node, which keeps its last intent. Traffic is not concerned.",
		"Issue a new one and copy it to the directory; the agent takes it over without a restart."}
	codeExpires = Code{"certificate-expires", Warning, "the node's certificate expires soon",
		"When it has expired the controller refuses this node.",
		"Issue a new one and copy it to the directory; the agent takes it over without a restart."}
	codeClock = Code{"clock", Warning, "the clock is not synchronized",
		"Certificates are judged by the clock, and the times in logs of two nodes cannot be compared.",
		"Run chrony or systemd-timesyncd; `timedatectl` shows whether it works."}
	codeDisk = Code{"disk-full", Error, "the state directory cannot be written",
		"The last intent is not kept, so that an agent that restarts without its controller starts with an old one; ENIs cannot be taken over safely.",
		"Make room, or remount the file system for writing."}
	codeUnobserved = Code{"not-observed", Info, "something could not be looked at",
		"A check was left out, so that its silence says nothing.",
		"The evidence says what was refused; the agent needs to run as root, or with NET_ADMIN and NET_RAW."}
	machineCodes = []Code{codeExpired, codeExpires, codeClock, codeDisk, codeUnobserved}
)

// Limits from which a machine's state is a finding.
const (
	expiresSoon = 30 * 24 * time.Hour
	// littleSpace is some hundred times what a large node's state takes.
	littleSpace = 16 << 20 // bytes
	fewInodes   = 16
)

func (f *findings) machine(e *Evidence) {
	if c := e.Certificate; c != nil {
		fix := []string{"vpcproxyctl pki issue " + e.Node, "copy the directory that it makes to " + c.Directory}
		switch left := c.Expires.Sub(e.Time); {
		case left <= 0:
			f.add(codeExpired, "", fmt.Sprintf("the certificate in %s expired on %s", c.Directory, c.Expires.Format(time.DateOnly)), nil, fix)
		case left < expiresSoon:
			f.add(codeExpires, "", fmt.Sprintf("the certificate in %s expires on %s", c.Directory, c.Expires.Format(time.DateOnly)), nil, fix)
		}
	}
	if !e.Clock.Synchronized {
		f.add(codeClock, "", "the kernel says that the clock is not synchronized", lines("adjtimex: STA_UNSYNC"), []string{"timedatectl set-ntp true"})
	}
	if d := e.Disk; d.Path != "" && (d.ReadOnly || d.Free < littleSpace || d.Inodes < fewInodes) {
		f.add(codeDisk, "", d.Path+" has no room, or is mounted read-only",
			lines("%d bytes and %d inodes free, read-only %t", d.Free, d.Inodes, d.ReadOnly), []string{"df -h " + d.Path, "df -i " + d.Path})
	}
	if len(e.Failed) > 0 {
		f.add(codeUnobserved, "", fmt.Sprintf("%d things could not be observed", len(e.Failed)), e.Failed, nil)
	}
}
