package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
)

const bundleLong = `Support-bundle writes what somebody else needs to find a cause into one file: the
evidence that doctor judges, its findings, the node's status, what the agent would
change, and what passes. GRE keys and private keys are not in it; addresses and names
of nodes, attachments and interfaces are.`

// maxPart bounds each file of a bundle.
const maxPart = 4 << 20 // bytes

func (a *app) bundleCommand() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "support-bundle",
		Short: "Write what somebody else needs to find a cause, without secrets",
		Long:  bundleLong,
		Args:  noArgs,
	}
	c.Flags().StringVarP(&path, "file", "f", "", "`file` to write, a .tar.gz; the default is named for the node and the time")
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx, cancel := timeout(c, kernelTimeout)
		defer cancel()
		node, parts, err := a.bundle(ctx)
		if err != nil {
			return err
		}
		if path == "" {
			path = fmt.Sprintf("vpcproxy-%s-%s.tar.gz", node, a.Now().UTC().Format("20060102T150405Z"))
		}
		// 0600: names and addresses are not everybody's business.
		f, err := os.OpenFile(filepath.Clean(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(pack(f, a.Now(), parts), f.Close()); err != nil {
			return err
		}
		return a.write([]byte(path+"\n"), nil)
	}
	return c
}

// part is one file of a bundle.
type part struct {
	name    string
	content []byte
}

// bundle gathers the parts. What cannot be had is noted in its place.
func (a *app) bundle(ctx context.Context) (node string, parts []part, err error) {
	client, err := a.node()
	if err != nil {
		return "", nil, err
	}
	w, err := a.witnessAt(a.nodeSocket, "--node-socket")
	if err != nil {
		return "", nil, err
	}
	e, err := ask[diagnose.Evidence](ctx, w, evidenceRequest(doctorPings))
	if err != nil {
		return "", nil, err
	}
	add := func(name string, v any, err error) {
		var content []byte
		if err == nil {
			content, err = json.MarshalIndent(v, "", "  ")
		}
		if err != nil {
			content = []byte(err.Error() + "\n")
		}
		parts = append(parts, part{name, redact(content)})
	}
	add("evidence.json", e, nil)
	add("findings.json", diagnose.Doctor(e), nil)
	status, err := client.NodeStatus(ctx, connect.NewRequest(&apiv1.NodeStatusRequest{}))
	if err == nil {
		add("status.json", status.Msg, nil)
	} else {
		add("status.json", nil, err)
	}
	plan, err := client.Plan(ctx, connect.NewRequest(&apiv1.PlanRequest{}))
	if err == nil {
		add("plan.json", planJSONOf(plan.Msg), nil)
	} else {
		add("plan.json", nil, err)
	}
	passing, err := traffic(ctx, w)
	add("traffic.json", passing, err)
	return e.Node, parts, nil
}

// secret is a GRE key as commands, keys of objects and manifests have it.
var secret = regexp.MustCompile(`(?i)\b([io]?key|greKey)("?[ :=]+"?)(\d[\d.]*)`)

// redact takes GRE keys out.
func redact(b []byte) []byte { return secret.ReplaceAll(b, []byte("${1}${2}REDACTED")) }

// pack writes parts, each cut at its limit.
func pack(f *os.File, now time.Time, parts []part) error {
	zip := gzip.NewWriter(f)
	out := tar.NewWriter(zip)
	for _, p := range parts {
		if len(p.content) > maxPart {
			p.content = append(bytes.Clone(p.content[:maxPart]), "\n… cut here\n"...)
		}
		if err := out.WriteHeader(&tar.Header{Name: p.name, Mode: 0o600, Size: int64(len(p.content)), ModTime: now}); err != nil {
			return err
		}
		if _, err := out.Write(p.content); err != nil {
			return err
		}
	}
	return errors.Join(out.Close(), zip.Close())
}
