package cli

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpcproxy/vpcproxy/internal/diagnose"
)

const netcheckLong = `Netcheck measures the ways to the nodes that this one speaks GRE to: how many packets
are lost, how long they take, and how large they may be.

Through the tunnel of each attachment it sends packets of its own, which the agent at
the other end counts and answers: what is lost, and what is too large, is known for
each direction. They take the tunnel's device and key, and no route, filter or
translation inside it: whether a pod's packets pass is what trace finds out.

Beside it stands the way on the underlay, by ping. What only the tunnel loses has to
do with GRE; what both lose has not.

With --proxy-socket the proxy measures, too.`

// The answer of `netcheck -o json`. Its keys are part of what scripts rely on.
type netcheckJSON struct {
	Node     string             `json:"node"`
	Tunnels  []diagnose.Tunnel  `json:"tunnels"`
	Peers    []diagnose.Peer    `json:"peers"`
	Findings []diagnose.Finding `json:"findings"`
}

func (a *app) netcheckCommand() *cobra.Command {
	var whom witnessFlags
	var pings int32
	c := &cobra.Command{
		Use:   "netcheck",
		Short: "Measure loss, time and packet size to this machine's peers, through the tunnels and beside them",
		Long:  netcheckLong,
		Args:  noArgs,
	}
	whom.add(c, a, true)
	c.Flags().Int32Var(&pings, "count", 20, "how many packets to send each way, 1 to 100")
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
			answers = append(answers, netcheckJSON{e.Node, e.Tunnels, e.Peers, diagnose.Ways(e)})
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
	inside := [][]string{{"FROM", "TO", "THROUGH", "LOST THERE", "LOST BACK", "TIME", "LARGEST THERE", "LARGEST BACK", "NEEDED"}}
	outside := [][]string{{"FROM", "TO", "UNDERLAY", "LOST", "TIME", "LARGEST", "NEEDED"}}
	for _, n := range answers {
		for _, t := range n.Tunnels {
			inside = append(inside, tunnelRow(n.Node, t))
		}
		for _, p := range n.Peers {
			took, largest := "-", "-"
			if p.Received > 0 {
				took = p.RTT.Round(time.Microsecond).String()
			}
			if p.MTU > 0 {
				largest = fmt.Sprint(p.MTU)
			}
			outside = append(outside, []string{n.Node, p.Node, p.Address.String(), percent(p.Sent-p.Received, p.Sent), took, largest, fmt.Sprint(p.Needed)})
		}
	}
	return slices.Concat(table(inside), []byte("\n"), table(outside), []byte(findingsText(allFindings(answers))))
}

func tunnelRow(node string, t diagnose.Tunnel) []string {
	row := []string{node, t.Node, t.Attachment}
	switch {
	case t.Sent == 0:
		return append(row, "-", "-", "-", "-", "-", "("+t.Idle+")")
	case t.There < 0:
		return append(row, "no answer", "-", "-", "-", "-", fmt.Sprint(t.Needed))
	}
	return append(row, percent(t.Sent-t.There, t.Sent), percent(t.There-t.Back, t.There), t.RTT.Round(time.Microsecond).String(),
		fmt.Sprint(t.MTUThere), fmt.Sprint(t.MTUBack), fmt.Sprint(t.Needed))
}

// percent is how many of all are lost.
func percent(lost, all int) string {
	return fmt.Sprintf("%.0f %%", 100*float64(lost)/float64(max(1, all)))
}
