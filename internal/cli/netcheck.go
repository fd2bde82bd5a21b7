package cli

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/diagnose"
)

const netcheckLong = `Netcheck measures the way to each node that this one speaks GRE to: how many
packets are lost, how long they take, and how large they may be, beside what a full
packet through the tunnel takes. With --proxy-socket the other direction is measured,
too.

It pings the underlay addresses, on which all that the tunnels carry travels. Whether
GRE itself passes is what trace finds out.`

// The answer of `netcheck -o json`. Its keys are part of what scripts rely on.
type netcheckJSON struct {
	Node     string             `json:"node"`
	Peers    []diagnose.Peer    `json:"peers"`
	Findings []diagnose.Finding `json:"findings"`
}

func (a *app) netcheckCommand() *cobra.Command {
	var whom witnessFlags
	var pings int32
	c := &cobra.Command{
		Use:   "netcheck",
		Short: "Measure loss, time and packet size to this machine's peers",
		Long:  netcheckLong,
		Args:  noArgs,
	}
	whom.add(c, a, true)
	c.Flags().Int32Var(&pings, "count", 20, "how many packets to send to each peer, 1 to 100")
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if pings < 1 || pings > 100 {
			return usagef("--count: %d is not between 1 and 100", pings)
		}
		ctx, cancel := timeout(c, kernelTimeout)
		defer cancel()
		all, err := whom.all(a)
		if err != nil {
			return err
		}
		var answers []netcheckJSON
		for _, w := range all {
			e, err := ask[diagnose.Evidence](ctx, w, evidenceRequest(pings))
			if err != nil {
				return err
			}
			answers = append(answers, netcheckJSON{e.Node, e.Peers, diagnose.Underlays(e)})
		}
		if out.word != "" {
			return errors.Join(a.write(encode(out, answers)), judged(allFindings(answers)))
		}
		return errors.Join(a.write(netcheckText(answers), nil), judged(allFindings(answers)))
	}
	return c
}

func allFindings(answers []netcheckJSON) []diagnose.Finding {
	var all []diagnose.Finding
	for _, n := range answers {
		all = slices.Concat(all, n.Findings)
	}
	return all
}

func netcheckText(answers []netcheckJSON) []byte {
	rows := [][]string{{"FROM", "TO", "ADDRESS", "LOSS", "TIME", "LARGEST", "NEEDED"}}
	for _, n := range answers {
		for _, p := range n.Peers {
			loss := 100 * float64(p.Sent-p.Received) / float64(max(1, p.Sent))
			largest := "-"
			if p.MTU > 0 {
				largest = fmt.Sprint(p.MTU)
			}
			rows = append(rows, []string{n.Node, p.Node, p.Address.String(), fmt.Sprintf("%.0f %%", loss), p.RTT.Round(time.Microsecond).String(), largest, fmt.Sprint(p.Needed)})
		}
	}
	return append(table(rows), findingsText(allFindings(answers))...)
}
