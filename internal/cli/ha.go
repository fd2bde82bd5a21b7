package cli

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	apiv1 "github.com/vpcproxy/vpcproxy/internal/api/vpcproxyv1alpha1"
)

func (a *app) haCommand() *cobra.Command {
	c := group("ha", "Active and standby proxies")
	c.AddCommand(a.haStatusCommand(), a.haImportCommand())
	return c
}

const haStatusLong = `Status shows what every proxy is in the election of each of its groups, as the
controller knows it; and under SESSIONS who keeps its connections when it ends, or
whose it keeps.

With --node-socket, and where no controller is configured or answers on its
default socket, it shows what this machine is, as its node agent knows it.`

func (a *app) haStatusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show which proxy is active in each group",
		Long:  haStatusLong,
		Args:  noArgs,
	}
	out := addFormat(c, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx, cancel := timeout(c, callTimeout)
		defer cancel()
		reports, err := a.electionReports(ctx, c)
		if err != nil {
			return err
		}
		if out.word == "" {
			return a.write(a.elections(reports), nil)
		}
		return a.write(encode(out, electionsJSON(reports)))
	}
	return c
}

// electionReports asks the controller, or the node agent.
func (a *app) electionReports(ctx context.Context, c *cobra.Command) ([]*apiv1.NodeReport, error) {
	local := func() ([]*apiv1.NodeReport, error) {
		client, err := a.node()
		if err != nil {
			return nil, err
		}
		resp, err := client.NodeStatus(ctx, connect.NewRequest(&apiv1.NodeStatusRequest{}))
		if err != nil {
			return nil, a.nodeError(err)
		}
		return []*apiv1.NodeReport{resp.Msg.GetReport()}, nil
	}
	if c.Flags().Changed("node-socket") {
		return local()
	}
	client, err := a.control()
	if err != nil {
		return nil, err
	}
	resp, err := client.Status(ctx, connect.NewRequest(&apiv1.StatusRequest{}))
	if err == nil {
		return resp.Msg.GetNodes(), nil
	}
	err = a.controlError(err)
	if chosen := c.Flags().Changed("controller") || os.Getenv(controllerEnv) != ""; !unavailable(err) || chosen {
		return nil, err
	}
	reports, failed := local()
	if unavailable(failed) {
		return nil, errors.Join(err, failed)
	}
	return reports, failed
}

// electionJSON is a line of `ha status -o json`. Its keys are part of what
// scripts rely on.
type electionJSON struct {
	Group         string     `json:"group"`
	Node          string     `json:"node"`
	Connected     bool       `json:"connected"`
	State         string     `json:"state"`
	Priority      uint32     `json:"priority"`
	Active        string     `json:"active"`
	Since         *time.Time `json:"since,omitempty"`
	Reason        string     `json:"reason"`
	Down          []string   `json:"down"`
	Discrepancies []string   `json:"discrepancies"`
	Problem       string     `json:"problem"`
	Transitions   uint64     `json:"transitions"`
	// Sessions is absent in a group of one.
	Sessions *sessionsJSON `json:"sessions,omitempty"`
}

type sessionsJSON struct {
	Copies  []string `json:"copies"`
	Entries uint64   `json:"entries"`
	Pending uint64   `json:"pending"`
	Problem string   `json:"problem"`
}

func electionsJSON(reports []*apiv1.NodeReport) []electionJSON {
	out := []electionJSON{}
	eachElection(reports, func(r *apiv1.NodeReport, g *apiv1.GroupReport) {
		e := electionJSON{
			Group: g.GetName(), Node: r.GetNode(), Connected: r.GetConnected(), State: g.GetState(), Priority: g.GetPriority(), Active: g.GetActive(),
			Reason: g.GetReason(), Down: list(g.GetDown()), Discrepancies: list(g.GetDiscrepancies()), Problem: g.GetProblem(), Transitions: g.GetTransitions(),
		}
		if g.GetSince() != nil {
			t := g.GetSince().AsTime()
			e.Since = &t
		}
		if s := g.GetSessions(); s != nil {
			e.Sessions = &sessionsJSON{Copies: list(s.GetCopies()), Entries: s.GetEntries(), Pending: s.GetPending(), Problem: s.GetProblem()}
		}
		out = append(out, e)
	})
	return out
}

// eachElection visits the reports by group.
func eachElection(reports []*apiv1.NodeReport, visit func(*apiv1.NodeReport, *apiv1.GroupReport)) {
	seen := map[string]bool{}
	for _, first := range reports {
		for _, g := range first.GetGroups() {
			if seen[g.GetName()] {
				continue
			}
			seen[g.GetName()] = true
			for _, r := range reports {
				if own := electionOf(r, g.GetName()); own != nil {
					visit(r, own)
				}
			}
		}
	}
}

func electionOf(r *apiv1.NodeReport, group string) *apiv1.GroupReport {
	for _, g := range r.GetGroups() {
		if g.GetName() == group {
			return g
		}
	}
	return nil
}

// elections is the table for people.
func (a *app) elections(reports []*apiv1.NodeReport) []byte {
	rows := [][]string{{"GROUP", "NODE", "STATE", "PRIORITY", "FOR", "ACTIVE", "SESSIONS", "MESSAGE"}}
	eachElection(reports, func(r *apiv1.NodeReport, g *apiv1.GroupReport) {
		state, age := g.GetState(), "-"
		switch {
		case g.GetProblem() != "":
			state = "none"
		case !r.GetConnected():
			state += " (disconnected)" // as it was last heard
		}
		if g.GetSince() != nil {
			age = a.age(g.GetSince().AsTime())
		}
		rows = append(rows, []string{g.GetName(), r.GetNode(), orDash(state), strconv.FormatUint(uint64(g.GetPriority()), 10), age,
			orDash(g.GetActive()), sessionsWord(g), orDash(electionMessage(g))})
	})
	return table(rows)
}

// sessionsWord tells where connections go on if this proxy, being active, ends; or
// whose connections it would go on with.
func sessionsWord(g *apiv1.GroupReport) string {
	s := g.GetSessions()
	switch {
	case s == nil:
		return "-"
	case s.GetProblem() != "":
		return "not kept"
	case len(s.GetCopies()) == 0:
		return "no copy"
	case g.GetState() == "Active":
		return "kept by " + strings.Join(s.GetCopies(), ", ")
	}
	return "copy of " + strings.Join(s.GetCopies(), ", ")
}

// electionMessage is what matters most: what is wrong, or why the state is.
func electionMessage(g *apiv1.GroupReport) string {
	switch {
	case g.GetProblem() != "":
		return g.GetProblem()
	case len(g.GetDiscrepancies()) > 0:
		return strings.Join(g.GetDiscrepancies(), "; ")
	case len(g.GetDown()) > 0:
		return "down: " + strings.Join(g.GetDown(), ", ")
	case g.GetSessions().GetProblem() != "":
		return "connections end in a failover: " + g.GetSessions().GetProblem()
	}
	return g.GetReason()
}
