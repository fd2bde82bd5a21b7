package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

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
	var whom witnessFlags
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong on this machine, and what mends it",
		Long:  doctorLong,
		Args:  noArgs,
	}
	whom.add(c, a, true)
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx, cancel := timeout(c, kernelTimeout)
		defer cancel()
		all, err := whom.all(a)
		if err != nil {
			return err
		}
		var list []diagnose.Finding
		node := ""
		for i, w := range all {
			e, err := ask[diagnose.Evidence](ctx, w, evidenceRequest(doctorPings))
			if found, down := a.down(whom, err); down && i == 0 {
				return a.printFindings(out, "", found)
			} else if err != nil {
				return err
			}
			if i == 0 {
				node = e.Node
			}
			list = append(list, diagnose.Doctor(e)...)
		}
		return a.printFindings(out, node, list)
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
