package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
	"github.com/vpcproxy/vpcproxy/internal/diagnose"
)

const doctorLong = `Doctor looks for what does not work, or soon will not, on this machine: kernel
features, parameters and limits, objects that are not in place, other programs'
packet filters, the clock, the certificate, the disk, the ways to the peers and
how large a packet they carry, and interfaces of users.

Each finding has a code, what was observed, what mends it, and a page in docs.`

// doctorPings is how many pings go to each peer.
const doctorPings = 5

// The answer of `doctor -o json`. Its keys are part of what scripts rely on.
type doctorJSON struct {
	Node     string             `json:"node"`
	Findings []diagnose.Finding `json:"findings"`
}

func (a *app) doctorCommand() *cobra.Command {
	var proxy string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong on this machine, and what mends it",
		Long:  doctorLong,
		Args:  noArgs,
	}
	addProxySocket(c, &proxy)
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx, cancel := timeout(c, kernelTimeout)
		defer cancel()
		client, err := a.node()
		if err != nil {
			return err
		}
		req := &apiv1.DiagnoseRequest{What: &apiv1.DiagnoseRequest_Evidence{Evidence: &apiv1.EvidenceRequest{Pings: doctorPings}}}
		e, err := ask[diagnose.Evidence](ctx, client, req)
		if unavailable(err) {
			return a.printFindings(out, "", []diagnose.Finding{diagnose.AgentDown(a.nodeSocket, a.nodeError(err))})
		} else if err != nil {
			return a.nodeError(err)
		}
		list := diagnose.Doctor(e)
		if proxy != "" {
			other, err := a.nodeAt(proxy)
			if err != nil {
				return err
			}
			far, err := ask[diagnose.Evidence](ctx, other, req)
			if err != nil {
				return callError("the node agent at "+proxy+" (--proxy-socket)", err)
			}
			list = append(list, diagnose.Doctor(far)...)
		}
		return a.printFindings(out, e.Node, list)
	}
	return c
}

func (a *app) printFindings(out *format, node string, list []diagnose.Finding) error {
	if out.word != "" {
		if list == nil {
			list = []diagnose.Finding{}
		}
		return errors.Join(a.write(encode(out, doctorJSON{node, list})), judged(list))
	}
	text := findingsText(list)
	if node != "" {
		text = fmt.Sprintf("%s%s: %s", text, node, summary(list))
	}
	return errors.Join(a.write([]byte(text), nil), judged(list))
}
